// Runs rows of token ids through a single file with onnxruntime-web, once for each setting of its other inputs.

export async function answerRows(ort, model, { rows, settings }) {
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(model);
  const answers = [];
  for (const setting of settings) {
    for (const ids of rows) {
      const feeds = {
        input_ids: wholeNumbers(ort, ids, [1, ids.length]),
        attention_mask: wholeNumbers(ort, ids.map(() => 1), [1, ids.length]),
        token_type_ids: wholeNumbers(ort, ids.map(() => 0), [1, ids.length]),
      };
      for (const [name, numbers] of Object.entries(setting)) {
        feeds[name] = new ort.Tensor("float64", Float64Array.from(numbers), [numbers.length]);
      }
      const given = await session.run(feeds);
      answers.push({
        logits: Array.from(given.logits.data),
        exitLayer: Number(given.exit_layer.data[0]),
        path: Array.from(given.path.data),
      });
    }
  }
  return answers;
}

function wholeNumbers(ort, numbers, shape) {
  return new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), shape);
}
