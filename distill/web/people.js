"use strict";
/* Head boxes that are moved and resized with mouse, finger and keyboard. A person is {number, box: [xmin, ymin, xmax, ymax] in [0,1], colour,
   answer}; `changed(person)` is called when a box moves, `chosen(person)` when one is selected, `removed(person)` when one goes. */

const LEAST = 0.012; // the shortest side of a box, in [0,1]
const EDGES = [[0, 1, "top left"], [2, 1, "top right"], [2, 3, "bottom right"], [0, 3, "bottom left"]];
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/* Black or white, whichever stands out more on `colour` (#rrggbb), by WCAG 2's relative luminance. */
function inkOn(colour) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 ? "#10141a" : "#fff";
}

class People {
  constructor(layer, colours, { changed, chosen, removed }) {
    Object.assign(this, { layer, colours, changed, chosen, removed, list: [], selected: null, counter: 0 });
  }

  add(box) {
    if (!this.list.length) this.counter = 0;
    const person = { number: ++this.counter, box: box.slice(), colour: this.colours[(this.counter - 1) % this.colours.length], answer: null };
    person.element = this.#element(person);
    this.list.push(person);
    this.layer.append(person.element);
    this.place(person);
    return person;
  }

  clear() {
    for (const person of this.list) person.element.remove();
    Object.assign(this, { list: [], selected: null, counter: 0 });
  }

  select(person) {
    this.selected = person;
    for (const each of this.list) each.element.classList.toggle("chosen", each === person);
    this.chosen(person);
  }

  remove(person) {
    const index = this.list.indexOf(person);
    person.element.remove();
    this.list.splice(index, 1);
    this.removed(person);
    const next = this.list[Math.min(index, this.list.length - 1)] || null;
    this.select(next);
    return next;
  }

  /* Put the element where the box is, and say so. */
  place(person) {
    const { box, element } = person, [x0, y0, x1, y1] = box;
    element.style.left = `${100 * x0}%`; element.style.top = `${100 * y0}%`;
    element.style.width = `${100 * (x1 - x0)}%`; element.style.height = `${100 * (y1 - y0)}%`;
    element.classList.toggle("top", y0 < 0.08);
    element.classList.toggle("right", x0 > 0.75);
    this.describe(person);
  }

  describe(person) {
    const [x0, y0, x1, y1] = person.box.map((value) => Math.round(100 * value));
    person.element.setAttribute("aria-label", `Head of person ${person.number}, ${x1 - x0} by ${y1 - y0} percent of the picture, at ${x0} percent from the left and ${y0} percent from the top. ${person.said || ""}`);
  }

  #element(person) {
    const element = document.createElement("div");
    element.className = "box";
    element.tabIndex = 0;
    element.style.setProperty("--colour", person.colour);
    element.style.setProperty("--on-colour", inkOn(person.colour));
    element.setAttribute("role", "application");
    element.setAttribute("aria-roledescription", "movable box");
    element.setAttribute("aria-describedby", "keys");
    const tag = document.createElement("span");
    tag.className = "tag";
    tag.textContent = String(person.number);
    element.append(tag);
    for (const [x, y, name] of EDGES) {
      const corner = document.createElement("span");
      corner.className = "corner";
      corner.dataset.x = x; corner.dataset.y = y;
      corner.title = `Resize: ${name} corner`;
      element.append(corner);
    }
    element.addEventListener("focus", () => this.select(person));
    element.addEventListener("keydown", (event) => this.#key(event, person));
    element.addEventListener("pointerdown", (event) => this.#drag(event, person));
    return element;
  }

  #key(event, person) {
    if (event.key === "Delete" || event.key === "Backspace") {
      event.preventDefault();
      const next = this.remove(person);
      (next ? next.element : document.getElementById("add")).focus();
      return;
    }
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!way || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const step = event.altKey ? 0.002 : 0.01, { width, height } = this.layer.getBoundingClientRect();
    // The same step in pixels either way, a hundredth of the longer side.
    const dx = way[0] * step * Math.max(width, height) / width, dy = way[1] * step * Math.max(width, height) / height;
    this.move(person, event.shiftKey ? [2, 3] : [0, 1, 2, 3], dx, dy);
  }

  /* Move the edges numbered in `edges` by dx, dy, in [0,1]; the whole box keeps its size at the picture's border. */
  move(person, edges, dx, dy, from = person.box) {
    const box = from.slice();
    if (edges.length === 4) {
      dx = clamp(dx, -box[0], 1 - box[2]); dy = clamp(dy, -box[1], 1 - box[3]);
    }
    for (const edge of edges) {
      const opposite = box[(edge + 2) % 4], value = box[edge] + (edge % 2 ? dy : dx);
      if (edges.length === 4) box[edge] = value;
      else box[edge] = edge < 2 ? clamp(value, 0, opposite - LEAST) : clamp(value, opposite + LEAST, 1);
    }
    person.box = box;
    this.place(person);
    this.changed(person);
  }

  #drag(event, person) {
    if (event.button) return;
    event.preventDefault();
    event.stopPropagation();
    person.element.focus({ preventScroll: true });
    const corner = event.target.closest(".corner"), edges = corner ? [Number(corner.dataset.x), Number(corner.dataset.y)] : [0, 1, 2, 3];
    this.follow(event, person, edges);
  }

  /* Let the edges follow the pointer until it is let go. */
  follow(event, person, edges) {
    const { width, height } = this.layer.getBoundingClientRect(), start = [event.clientX, event.clientY], from = person.box.slice();
    const moved = (next) => {
      if (next.pointerId === event.pointerId) this.move(person, edges, (next.clientX - start[0]) / width, (next.clientY - start[1]) / height, from);
    };
    const ended = (next) => {
      if (next.pointerId !== event.pointerId) return;
      window.removeEventListener("pointermove", moved);
      window.removeEventListener("pointerup", ended);
      window.removeEventListener("pointercancel", ended);
    };
    window.addEventListener("pointermove", moved);
    window.addEventListener("pointerup", ended);
    window.addEventListener("pointercancel", ended);
  }
}
