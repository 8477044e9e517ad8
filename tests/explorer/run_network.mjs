// Computes with the page's own modules: node run_network.mjs FILE, a JSON file with cases; prints a JSON list.
import { readFileSync } from "node:fs";
import { Network, boxAt, bytesOf, unpacked } from "../../gpuconv/explorer/page/network.mjs";

const cases = JSON.parse(readFileSync(process.argv[2], "utf-8"));
const numbers = (text) => {
  const bytes = bytesOf(text);
  return new Float32Array(bytes.buffer, 0, bytes.length / 4);
};

function answer(one) {
  const weights = unpacked(one.program.tensors, bytesOf(one.weights), one.half);
  const network = new Network(one.program, weights);
  const pictures = numbers(one.pictures);
  const size = network.array(one.program.input).length;
  const logits = [];
  const times = [];
  for (let at = 0; at < pictures.length; at += size) {
    const before = performance.now();
    logits.push(Array.from(network.run(pictures.subarray(at, at + size))));
    times.push(performance.now() - before);
  }
  const result = { logits, milliseconds: times.sort((a, b) => a - b)[times.length >> 1] };
  if (one.gradient !== undefined) result.gradient = Array.from(network.gradient(one.gradient));
  if (one.ask) {
    result.told = one.ask.map(([number, index]) => {
      const step = network.steps[number];
      return {
        value: network.array(step.output)[index],
        terms: network.terms(step, index),
        pooled: network.pooled(step, index),
        boxes: network.sources(step, boxAt(step.shapes.at(-1), index)),
      };
    });
  }
  return result;
}

console.log(JSON.stringify(cases.map(answer)));
