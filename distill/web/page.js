"use strict";
/* The page: what is pressed, dropped and shown. GAZE_MODEL, GAZE_RUNTIME and GAZE_SAMPLE are written by `distill export --format web`. */

const page = Object.fromEntries(["stage", "picture", "drawing", "boxes", "people", "nobody", "status", "spoken", "file", "sample", "add", "facts"].map((id) => [id, document.getElementById(id)]));
const [ROWS, COLUMNS] = GAZE_MODEL.facts.heatmap_size;
const people = new People(page.boxes, GAZE_MODEL.palette, { changed: ask, chosen: show, removed: ask });
const queue = []; // what is said to the model before it is there
let post = (message, give) => queue.push([message, give]), lost = false, busy = false, stale = false, asked = [], askedNumber = 0, prepared = 0, ms = null, opened = 0, settled = [], telling = 0;

const percent = (share) => `${Math.round(100 * share)}\u00a0%`;
/** A model is never wholly sure: 99.6 % is not called 100. */
const chance = (share) => (share > 0.99 ? "over 99\u00a0%" : percent(share));

function say(text, wrong = false) {
  page.status.textContent = text;
  page.status.classList.toggle("wrong", wrong);
}

/* --- the model ------------------------------------------------------------------------------------------------------------------ */

function engineInWorker(library) {
  const text = `${library}\n;const handle = (${gazeEngine})((message) => postMessage(message));\nonmessage = (event) => handle(event.data);`;
  const worker = new Worker(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
  worker.onmessage = (event) => heard(event.data);
  worker.onerror = (event) => heard({ kind: "error", of: "load", what: event.message || "the worker did not start" });
  return (message, give = []) => worker.postMessage(message, give);
}

async function start() {
  if (typeof DecompressionStream === "undefined" || typeof WebAssembly === "undefined") {
    throw new Error("this browser is too old for the model (Chrome 80, Firefox 114 and Safari 16.4 are the first that can)");
  }
  const [library, glue, wasm, onnx] = await Promise.all([GAZE_RUNTIME.library, GAZE_RUNTIME.glue, GAZE_RUNTIME.wasm, GAZE_MODEL.onnx].map(unpacked));
  // Threads need headers that a folder on its own has not; one thread is what every host gives.
  const threads = self.crossOriginIsolated ? clamp(Math.floor((navigator.hardwareConcurrency || 2) / 2), 1, 4) : 1;
  const engine = engineInWorker(new TextDecoder().decode(library));
  // A page from a disk has no origin of its own: its worker may import text of a data address, but none of the page's blobs.
  const place = `data:text/javascript;base64,${btoa(new TextDecoder().decode(glue))}`;
  const ready = new Promise((resolve, reject) => Object.assign(start, { resolve, reject }));
  engine({ kind: "load", onnx, wasm, glue: place, facts: GAZE_MODEL.facts, threads }, [onnx, wasm]);
  for (const each of queue.splice(0)) engine(...each);
  post = engine;
  await ready;
  facts(threads);
}

function heard(message) {
  if (message.kind === "ready") return start.resolve();
  if (message.kind === "error") {
    busy = false;
    if (message.of === "load") start.reject(new Error(message.what));
    else if (!lost) say(`The model could not answer: ${message.what}`, true);
    settle();
    return;
  }
  busy = false;
  ({ prepared, ms } = message);
  const cells = ROWS * COLUMNS;
  asked.forEach((person, index) => {
    const map = message.heatmap.slice(index * cells, (index + 1) * cells), best = highest(map);
    const inout = message.inout ? sigmoid(message.inout[index]) : null;
    // The point is the cell's centre; benchmarks, and answers.jsonl, count its upper left corner.
    person.answer = { map, cell: [Math.floor(best / COLUMNS), best % COLUMNS], point: [(best % COLUMNS + 0.5) / COLUMNS, (Math.floor(best / COLUMNS) + 0.5) / ROWS], peak: sigmoid(map[best]), inout, out: inout !== null && inout < 0.5, wash: null };
  });
  if (stale) ask();
  else settle();
  show(people.selected);
}

/* Ask for everybody at once: the picture is worked through once, however many people there are. While an answer is on its way the
   next question waits, and only the last one is put. */
function ask() {
  show(people.selected);
  if (!page.picture.dataset.name) return;
  if (busy) { stale = true; return; }
  stale = false;
  asked = people.list.slice();
  if (!asked.length) { ms = null; settle(); show(null); return; }
  busy = true;
  post({ kind: "run", number: ++askedNumber, boxes: asked.flatMap((person) => person.box) });
}

function settle() {
  if (stale || busy) return;
  clearTimeout(telling);
  telling = setTimeout(tell, 600);
  for (const resolve of settled.splice(0)) resolve();
}

/* Read out the answer for the person whose box has the focus, once it has come to rest: a label that changes is not read again. */
function tell() {
  const person = people.list.find((each) => each.element === document.activeElement);
  page.spoken.textContent = person && person.answer ? `Person ${person.number}. ${person.said}` : "";
}

/* --- pictures ------------------------------------------------------------------------------------------------------------------- */

async function open(blob, name, boxes) {
  const turn = ++opened;
  let data;
  try {
    const canvas = document.createElement("canvas");
    data = await drawFile(blob, canvas);
    if (turn !== opened) return;
    page.picture.width = canvas.width; page.picture.height = canvas.height;
    page.picture.getContext("2d").drawImage(canvas, 0, 0);
  } catch (error) {
    if (turn === opened) say(`${name} cannot be shown as a picture; choose a JPEG, PNG or WebP file.`, true);
    return;
  }
  page.picture.dataset.name = name;
  page.picture.setAttribute("aria-label", `Picture: ${name}, ${data.width} by ${data.height} pixels`);
  // A picture smaller than the space is shown larger: heads in it can be pointed at.
  page.picture.style.width = data.width < 900 ? `min(100%, 900px, calc(78vh * ${data.width / data.height}))` : "";
  people.clear();
  post({ kind: "picture", rgba: data.data.buffer, width: data.width, height: data.height }, [data.data.buffer]);
  for (const box of boxes || [middle()]) people.add(box);
  people.select(people.list[0] || null);
  if (!lost) say(boxes ? "" : "Move the box onto a head, and add one for each further person.");
  ask();
}

/* A box of a head's size in the upper middle, square in pixels, beside those that are there. */
function middle() {
  const { width, height } = page.picture, side = 0.18 * Math.min(width, height), shift = 0.06 * (people.list.length % 8);
  const x = clamp(0.5 - side / width / 2 + shift, 0, 1 - side / width), y = clamp(0.25 + shift, 0, 1 - side / height);
  return [x, y, x + side / width, y + side / height];
}

async function sample() {
  const bytes = Uint8Array.from(atob(GAZE_SAMPLE.picture), (character) => character.charCodeAt(0));
  await open(new Blob([bytes], { type: GAZE_SAMPLE.type }), "sample picture", GAZE_SAMPLE.boxes);
}

/* --- what is seen --------------------------------------------------------------------------------------------------------------- */

function show(chosen) {
  draw(chosen);
  page.nobody.hidden = people.list.length > 0;
  const held = new Map([...page.people.children].map((item) => [item.dataset.number, item]));
  for (const person of people.list) {
    const item = held.get(String(person.number)) || entry(person);
    held.delete(item.dataset.number);
    const { answer } = person;
    person.element.classList.toggle("out", Boolean(answer && answer.out));
    item.classList.toggle("chosen", person === chosen);
    item.querySelector(".choose").setAttribute("aria-pressed", String(person === chosen));
    let said = "waiting for the answer";
    if (answer && answer.inout !== null) said = answer.out ? `out of the picture, ${chance(1 - answer.inout)} sure` : `in the picture, ${chance(answer.inout)} sure`;
    else if (answer) said = `highest probability ${chance(answer.peak)}`;
    item.querySelector("span").textContent = said;
    // The bar is as long as what is said is sure, and broken like the box where that is "out".
    const sure = answer && (answer.inout === null ? answer.peak : answer.out ? 1 - answer.inout : answer.inout);
    item.querySelector(".meter").classList.toggle("out", Boolean(answer && answer.out));
    item.querySelector("i").style.width = `${100 * (sure || 0)}%`;
    const where = answer && !answer.out ? `Looks at a point ${percent(answer.point[0])} from the left, ${percent(answer.point[1])} from the top.` : said;
    if (person.said !== where) { person.said = where; people.describe(person); }
  }
  for (const item of held.values()) item.remove();
  timing();
}

function entry(person) {
  const item = document.createElement("li");
  item.className = "person";
  item.dataset.number = person.number;
  item.style.setProperty("--colour", person.colour);
  item.innerHTML = `<button type="button" class="choose"><b>Person ${person.number}</b><span></span><em class="meter" aria-hidden="true"><i></i></em></button>
    <button type="button" class="remove" aria-label="Remove person ${person.number}" title="Remove">×</button>`;
  item.querySelector(".choose").addEventListener("click", () => people.select(person));
  item.querySelector(".remove").addEventListener("click", () => {
    const next = people.remove(person);
    const place = next ? page.people.querySelector(`[data-number="${next.number}"] .choose`) : page.add;
    place.focus();
  });
  page.people.append(item);
  return item;
}

function draw(chosen) {
  const { width, height } = page.stage.getBoundingClientRect(), scale = window.devicePixelRatio || 1, pen = page.drawing.getContext("2d");
  page.drawing.width = Math.round(width * scale); page.drawing.height = Math.round(height * scale);
  pen.scale(scale, scale);
  if (chosen && chosen.answer && !chosen.answer.out) {
    chosen.answer.wash ||= washed(chosen.answer.map, ROWS, COLUMNS, GAZE_MODEL.colours);
    pen.fillStyle = "#0002";
    pen.fillRect(0, 0, width, height);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(chosen.answer.wash, 0, 0, width, height);
  }
  const line = clamp(Math.min(width, height) / 190, 1.6, 4);
  // Who is selected lies on top; in a crowd the others step back.
  for (const person of [...people.list.filter((each) => each !== chosen), ...(chosen ? [chosen] : [])]) {
    const { answer, box, colour } = person;
    if (!answer || answer.out) continue;
    pen.globalAlpha = person === chosen || people.list.length <= 8 ? 1 : 0.4;
    const from = [(box[0] + box[2]) / 2 * width, (box[1] + box[3]) / 2 * height], to = [answer.point[0] * width, answer.point[1] * height];
    const far = Math.hypot(to[0] - from[0], to[1] - from[1]), radius = 3.4 * line, share = far > radius ? 1 - radius / far : 0;
    for (const [ink, extra] of [["#10141aaa", 2], [colour, 0]]) {
      pen.strokeStyle = pen.fillStyle = ink;
      pen.lineWidth = line * (person === chosen ? 1.3 : 0.9) + extra;
      pen.beginPath();
      if (share) { pen.moveTo(...from); pen.lineTo(from[0] + (to[0] - from[0]) * share, from[1] + (to[1] - from[1]) * share); }
      pen.moveTo(to[0] + radius, to[1]);
      pen.arc(to[0], to[1], radius, 0, 2 * Math.PI);
      pen.stroke();
      pen.beginPath();
      pen.arc(from[0], from[1], 1.2 * line + extra / 2, 0, 2 * Math.PI);
      pen.fill();
    }
  }
}

function facts(threads) {
  const { facts: model } = GAZE_MODEL, [height, width] = model.input_size;
  const rows = [
    ["Model", model.name], ["Sees", `${width} × ${height}, ${model.precision}`], ["Answer", "–"], ["Picture made ready", "–"],
    ["ONNX Runtime Web", `${GAZE_RUNTIME.version}, ${threads} thread${threads > 1 ? "s" : ""}`],
  ];
  page.facts.replaceChildren(...rows.flatMap(([name, value]) => {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name; text.textContent = value;
    text.dataset.fact = name;
    return [term, text];
  }));
  timing();
}

function timing() {
  const answer = page.facts.querySelector('[data-fact="Answer"]');
  if (!answer) return;
  const count = asked.length;
  answer.textContent = ms === null ? "–" : `${ms.toFixed(ms < 20 ? 1 : 0)} ms for ${count} ${count === 1 ? "person" : "people"}`;
  page.facts.querySelector('[data-fact="Picture made ready"]').textContent = ms === null ? "–" : `${prepared.toFixed(0)} ms`;
}

/* --- what is pressed ------------------------------------------------------------------------------------------------------------ */

page.file.addEventListener("change", () => {
  const [file] = page.file.files;
  if (file) open(file, file.name);
  page.file.value = ""; // the same file may be chosen again
});
page.sample.addEventListener("click", sample);
page.add.addEventListener("click", () => {
  if (!page.picture.dataset.name) return;
  const person = people.add(middle());
  person.element.focus();
  ask();
});
page.stage.addEventListener("pointerdown", (event) => {
  if (event.button || event.pointerType === "touch" || !page.picture.dataset.name) return; // a finger scrolls
  event.preventDefault();
  const { left, top, width, height } = page.stage.getBoundingClientRect();
  const x = clamp((event.clientX - left) / width, 0, 1 - LEAST), y = clamp((event.clientY - top) / height, 0, 1 - LEAST);
  const begin = [event.clientX, event.clientY];
  const grown = (next) => {
    if (next.pointerId !== event.pointerId || Math.hypot(next.clientX - begin[0], next.clientY - begin[1]) < 8) return;
    stop();
    // The corner on the pointer's side of where it went down follows it.
    const leftward = next.clientX <= begin[0], upward = next.clientY <= begin[1];
    const corner = [leftward ? Math.max(x, LEAST) : x, upward ? Math.max(y, LEAST) : y];
    const person = people.add([...corner, ...corner]);
    person.element.focus({ preventScroll: true });
    people.follow(event, person, [leftward ? 0 : 2, upward ? 1 : 3]);
  };
  const stop = () => { window.removeEventListener("pointermove", grown); window.removeEventListener("pointerup", stop); };
  window.addEventListener("pointermove", grown);
  window.addEventListener("pointerup", stop);
});
window.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
window.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
window.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  if (file) open(file, file.name);
});
window.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
  if (file) open(file, file.name || "pasted picture");
});
new ResizeObserver(() => draw(people.selected)).observe(page.stage);
page.stage.classList.add("draws");

/* For whoever drives the page with a program: wait for it, open a picture with boxes, read the answers. */
window.gaze = {
  ready: Promise.all([sample(), start()]).catch((error) => { lost = true; say(`The model could not be loaded: ${error.message}`, true); throw error; }),
  open: async (url, boxes) => { await open(await (await fetch(url)).blob(), url.slice(0, 60), boxes); await window.gaze.settled(); },
  settled: () => new Promise((resolve) => { settled.push(resolve); settle(); }),
  answers: () => people.list.map(({ number, box, answer }) => ({ number, box, answer: answer && { ...answer, map: [...answer.map], wash: null } })),
};
window.gaze.ready.catch(() => {});
