import assert from "node:assert/strict";
import { test } from "node:test";
import { Sequencer } from "../src/sequencer.js";
import { generator, shuffledWithin } from "./random.js";

interface Item {
  readonly sequence: number;
  readonly count: number;
}

function frames(random: () => number, total: number): Item[] {
  const items: Item[] = [];
  for (let sequence = 0; items.length < total; ) {
    const count = 1 + Math.floor(random() * 5);
    items.push({ sequence, count });
    sequence += count;
  }
  return items;
}

function collect(ordered: boolean, options: { waitMs?: number; maxHeld?: number } = {}) {
  const delivered: Item[] = [];
  const lost: number[] = [];
  const sequencer = new Sequencer<Item>({
    ordered,
    waitMs: options.waitMs ?? 100,
    maxHeld: options.maxHeld ?? 1000,
    deliver: (item) => delivered.push(item),
    lost: (count) => lost.push(count) > 0,
  });
  const events = () => delivered.reduce((sum, { count }) => sum + count, 0);
  return { sequencer, delivered, lost, events, lostEvents: () => lost.reduce((sum, count) => sum + count, 0) };
}

const SEEDS = Array.from({ length: 300 }, (_, seed) => seed);

test("any order comes out in order, without loss", () => {
  for (const seed of SEEDS) {
    const random = generator(seed);
    const sent = frames(random, 1 + Math.floor(random() * 60));
    const { sequencer, delivered, lost } = collect(true);
    for (const item of shuffledWithin(sent, sent.length, random)) sequencer.push(item.sequence, item.count, item, 0);
    sequencer.expire(1_000_000);
    assert.deepEqual(delivered, sent, `seed ${seed}`);
    assert.deepEqual(lost, []);
    assert.equal(sequencer.deadline, null);
  }
});

test("every event is delivered once or reported once, whatever is lost, late, repeated or told, and whenever time passes", () => {
  for (const ordered of [true, false]) {
    for (const seed of SEEDS) {
      const random = generator(seed);
      const sent = frames(random, 1 + Math.floor(random() * 60));
      const total = sent.reduce((sum, { count }) => sum + count, 0);
      const { sequencer, delivered, lost, events, lostEvents } = collect(ordered, { maxHeld: 1 + Math.floor(random() * 40) });
      const repeated = sent.flatMap((item) => (random() < 0.1 ? [item, item] : [item]));
      const arriving = shuffledWithin(repeated, 8, random).filter(() => random() < 0.8);
      let now = 0;
      for (const item of arriving) {
        now += random() * 40;
        sequencer.expire(now);
        // A total that is told never exceeds what was sent before this frame's time.
        if (random() < 0.2) sequencer.tell(item.sequence, now);
        sequencer.push(item.sequence, item.count, item, now);
      }
      sequencer.tell(total, now);
      for (let deadline = sequencer.deadline; deadline !== null; deadline = sequencer.deadline) sequencer.expire(deadline);
      assert.equal(events() + lostEvents(), total, `seed ${seed}`);
      assert.ok(lost.every((count) => count > 0));
      assert.equal(new Set(delivered).size, delivered.length);
      if (ordered) assert.deepEqual(delivered, [...delivered].sort((a, b) => a.sequence - b.sequence));
    }
  }
});

test("an item without events waits for all that was sent before it", () => {
  const { sequencer, delivered, lost } = collect(true, { waitMs: 100 });
  const position = { sequence: 4, count: 0 };
  sequencer.push(4, 0, position, 0);
  sequencer.push(2, 2, { sequence: 2, count: 2 }, 10);
  assert.equal(delivered.length, 0);
  sequencer.push(0, 2, { sequence: 0, count: 2 }, 20);
  assert.deepEqual(delivered.map(({ sequence }) => sequence), [0, 2, 4]);
  sequencer.push(6, 0, { sequence: 6, count: 0 }, 30);
  sequencer.expire(130);
  assert.deepEqual(lost, [2]);
  assert.equal(delivered.at(-1)?.sequence, 6);
  assert.equal(sequencer.deadline, null);
});

test("a hole is waited for as long as agreed, and only so long", () => {
  const { sequencer, delivered, lost } = collect(true, { waitMs: 100 });
  sequencer.push(2, 1, { sequence: 2, count: 1 }, 10);
  assert.equal(sequencer.deadline, 110);
  sequencer.expire(109);
  assert.deepEqual([delivered, lost], [[], []]);
  sequencer.expire(110);
  assert.deepEqual(lost, [2]);
  assert.equal(delivered.length, 1);
  sequencer.push(0, 2, { sequence: 0, count: 2 }, 111);
  assert.equal(delivered.length, 1, "what was reported as lost is not delivered any more");
});

test("a total that was told later does not shorten the wait for its events", () => {
  const { sequencer, lost } = collect(true, { waitMs: 100 });
  sequencer.tell(10, 0);
  sequencer.tell(50, 90);
  sequencer.expire(100);
  assert.deepEqual(lost, [10]);
  assert.equal(sequencer.deadline, 190);
});

test("an item without events tells how many there are, and passes at once where nothing is missing", () => {
  const { sequencer, delivered } = collect(true);
  sequencer.push(0, 0, { sequence: 0, count: 0 }, 4);
  assert.equal(delivered.length, 1);
  sequencer.push(4, 0, { sequence: 4, count: 0 }, 5);
  assert.equal(sequencer.deadline, 105);
});

test("after a refusal of a loss nothing is delivered", () => {
  const delivered: Item[] = [];
  const sequencer = new Sequencer<Item>({ ordered: true, waitMs: 1, maxHeld: 9, deliver: (item) => delivered.push(item), lost: () => false });
  sequencer.push(1, 1, { sequence: 1, count: 1 }, 0);
  sequencer.expire(1);
  sequencer.push(0, 1, { sequence: 0, count: 1 }, 2);
  assert.deepEqual(delivered, []);
  assert.equal(sequencer.deadline, null);
});
