/** Return reproducible random numbers in [0, 1): a linear congruential generator, whose high bits are good enough here. */
export function generator(seed: number): () => number {
  let state = seed * 2_654_435_761;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Return the items, each moved by less than `distance` places. */
export function shuffledWithin<T>(items: readonly T[], distance: number, random: () => number): T[] {
  const keyed = items.map((item, index) => ({ item, key: index + random() * distance }));
  return keyed.sort((a, b) => a.key - b.key).map(({ item }) => item);
}
