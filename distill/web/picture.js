"use strict";
/* From a file to pixels, and from heatmaps to colours. */

const MOST_PIXELS = 16e6; // what every phone's browser can hold in one canvas

/* The picture in `blob`, upright, on white where it is transparent, drawn on `canvas`. Its colours are the file's own numbers, without
   a colour profile applied, as Python reads them. Throws where the browser cannot decode it. */
async function drawFile(blob, canvas) {
  const bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const shrink = Math.min(1, Math.sqrt(MOST_PIXELS / (bitmap.width * bitmap.height)));
  canvas.width = Math.max(1, Math.floor(bitmap.width * shrink));
  canvas.height = Math.max(1, Math.floor(bitmap.height * shrink));
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return pen.getImageData(0, 0, canvas.width, canvas.height);
}

/* Bytes of text that was compressed with gzip and written in base64. */
async function unpacked(text) {
  const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

const sigmoid = (logit) => 1 / (1 + Math.exp(-logit));

/* The highest cell of one map: the first of equal ones, as Python counts. */
function highest(map) {
  let best = 0;
  for (let cell = 1; cell < map.length; cell++) if (map[cell] > map[best]) best = cell;
  return best;
}

/* A canvas of one heatmap's logits: nothing at its floor, colour at its maximum, `finer` times the grid. */
function washed(map, rows, columns, colours, finer = 4) {
  const wide = columns * finer, high = rows * finer, canvas = document.createElement("canvas");
  canvas.width = wide; canvas.height = high;
  const pen = canvas.getContext("2d"), pixels = pen.createImageData(wide, high);
  const chances = Float32Array.from(map, sigmoid), peak = chances.reduce((a, b) => Math.max(a, b), 0);
  const at = (x, y) => chances[Math.min(rows - 1, Math.max(0, y)) * columns + Math.min(columns - 1, Math.max(0, x))];
  for (let y = 0; y < high; y++) {
    for (let x = 0; x < wide; x++) {
      const u = (x + 0.5) / finer - 0.5, v = (y + 0.5) / finer - 0.5, left = Math.floor(u), top = Math.floor(v), dx = u - left, dy = v - top;
      const value = ((1 - dy) * ((1 - dx) * at(left, top) + dx * at(left + 1, top)) + dy * ((1 - dx) * at(left, top + 1) + dx * at(left + 1, top + 1))) / peak;
      const ramp = Math.min(1, Math.max(0, (value - 0.04) / 0.66)), place = value * (colours.length - 1), low = Math.min(Math.floor(place), colours.length - 2);
      for (let channel = 0; channel < 3; channel++) {
        pixels.data[4 * (y * wide + x) + channel] = colours[low][channel] + (place - low) * (colours[low + 1][channel] - colours[low][channel]);
      }
      pixels.data[4 * (y * wide + x) + 3] = 255 * 0.74 * ramp * ramp * (3 - 2 * ramp);
    }
  }
  pen.putImageData(pixels, 0, 0);
  return canvas;
}
