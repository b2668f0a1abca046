// The example of README.md and docs/clients.md, so that the compiler reads it; `example.test.ts` compares them.
declare const apiKey: string;
// ---
import { Stream } from "@mev/client";

const stream = new Stream({ origin: "https://mev.example.org", apiKey });
stream.on("gap", (gap) => console.warn(`${gap.count ?? "an unknown number of"} events missing: ${gap.reason}`));
stream.on("error", (error) => console.error(error.code, error.detail));

const big = stream.subscribe({ topics: ["opportunity"], filter: ["expected_profit_lamports >= 1000000"], onSlow: "lossless" });
for await (const { message, partition, offset } of big) {
  console.log(partition, offset, message.id, message.expectedProfitLamports); // bigint
}
