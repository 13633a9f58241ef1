"use strict";
/* The model in ONNX Runtime. This one function runs in a worker, which the page makes of its text, so it uses nothing from outside but
   `ort`. `reply(message)` sends to the page; what is returned takes the page's messages:
     {kind: "load", ...}  ->  {kind: "ready", threads}
     {kind: "picture", rgba, width, height}: the picture that is meant from now on, 4 bytes a pixel, held upright
     {kind: "run", number, boxes}  ->  {kind: "answer", number, heatmap [N*h*w] logits, inout [N] logits or null, prepared, ms}
   Boxes are xmin, ymin, xmax, ymax in [0,1]. An exception becomes {kind: "error", what}. */
function gazeEngine(reply) {
  let session, description, picture, tensor, prepared = 0;

  /* Weights of a triangle filter over half-pixel centres, its support max(1, from / to) source pixels on either side: antialiased
     bilinear resampling as the student was trained with. For each target place the first source place and the weights. */
  function weights(from, to) {
    const scale = from / to, support = Math.max(1, scale), rows = [];
    for (let place = 0; place < to; place++) {
      const centre = scale * (place + 0.5);
      const first = Math.max(0, Math.trunc(centre - support + 0.5)), end = Math.min(from, Math.trunc(centre + support + 0.5));
      const row = new Float64Array(end - first);
      let sum = 0;
      for (let k = 0; k < row.length; k++) sum += row[k] = Math.max(0, 1 - Math.abs(first + k + 0.5 - centre) / support);
      for (let k = 0; k < row.length; k++) row[k] /= sum;
      rows.push({ first, row });
    }
    return rows;
  }

  /* Values 0..255, three planes [3,h,w], of a picture squashed to w x h. */
  function resized({ rgba, width, height }, w, h) {
    const across = weights(width, w), down = weights(height, h);
    const narrow = new Float32Array(3 * height * w);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < w; x++) {
        const { first, row } = across[x];
        let r = 0, g = 0, b = 0, from = 4 * (y * width + first);
        for (let k = 0; k < row.length; k++, from += 4) {
          r += row[k] * rgba[from]; g += row[k] * rgba[from + 1]; b += row[k] * rgba[from + 2];
        }
        const to = y * w + x;
        narrow[to] = r; narrow[height * w + to] = g; narrow[2 * height * w + to] = b;
      }
    }
    const planes = new Float32Array(3 * h * w);
    for (let plane = 0; plane < 3; plane++) {
      for (let y = 0; y < h; y++) {
        const { first, row } = down[y];
        for (let x = 0; x < w; x++) {
          let sum = 0;
          for (let k = 0; k < row.length; k++) sum += row[k] * narrow[(plane * height + first + k) * w + x];
          planes[(plane * h + y) * w + x] = sum;
        }
      }
    }
    return planes;
  }

  /* The picture as the graph's first input wants it: float [1,3,h,w] in [0,1] of a fixed size, or bytes, of any size where the graph
     says none, with channels first or last. */
  function pictureTensor() {
    const { shape, type } = description.inputs[0], last = shape[3] === 3;
    const [h, w] = (last ? shape.slice(1, 3) : shape.slice(2, 4)).map((side, axis) => typeof side === "number" ? side : [picture.height, picture.width][axis]);
    const planes = resized(picture, w, h), bytes = type === "uint8";
    const values = bytes ? new Uint8ClampedArray(planes.length) : new Float32Array(planes.length);
    for (let i = 0; i < planes.length; i++) {
      values[last ? 3 * (i % (h * w)) + Math.trunc(i / (h * w)) : i] = bytes ? planes[i] : Math.min(1, Math.max(0, planes[i] / 255));
    }
    return new ort.Tensor(type, bytes ? new Uint8Array(values.buffer) : values, last ? [1, h, w, 3] : [1, 3, h, w]);
  }

  const handlers = {
    async load({ onnx, wasm, glue, facts, threads }) {
      description = facts;
      ort.env.logLevel = "error";
      ort.env.wasm.numThreads = threads;
      ort.env.wasm.wasmBinary = wasm;
      ort.env.wasm.wasmPaths = { mjs: glue };
      session = await ort.InferenceSession.create(new Uint8Array(onnx), { executionProviders: ["wasm"], graphOptimizationLevel: "all" });
      reply({ kind: "ready", threads });
    },
    async picture({ rgba, width, height }) {
      picture = { rgba: new Uint8ClampedArray(rgba), width, height };
      tensor = null;
    },
    async run({ number, boxes }) {
      if (!tensor) {
        const began = performance.now();
        tensor = pictureTensor();
        prepared = performance.now() - began;
      }
      const count = boxes.length / 4, names = description.inputs.map((input) => input.name), feeds = { [names[0]]: tensor };
      feeds[names[1]] = new ort.Tensor("float32", Float32Array.from(boxes), [count, 4]);
      if (names[2]) feeds[names[2]] = new ort.Tensor("int64", new BigInt64Array(count), [count]);
      const began = performance.now();
      const answer = await session.run(feeds);
      const ms = performance.now() - began;
      const heatmap = Float32Array.from(answer.heatmap.data), inout = answer.inout ? Float32Array.from(answer.inout.data) : null;
      if (!heatmap.every(Number.isFinite) || (inout && !inout.every(Number.isFinite))) throw new Error("the model's answer is not finite");
      reply({ kind: "answer", number, heatmap, inout, prepared, ms });
    },
  };
  let before = Promise.resolve();
  return (message) => {
    before = before.then(() => handlers[message.kind](message)).catch((error) => reply({ kind: "error", of: message.kind, what: String(error.message || error) }));
  };
}
