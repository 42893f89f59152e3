// A pad for models that take small grey pictures. It draws as the model was trained, and gives a picture of its size.

const SIDE = 560; // pixels of the longer side of the pad
const PAUSE = 120; // ms after a stroke until it is asked about
const UNDONE = 30; // strokes that can be taken back

/** Whether a model with this recipe is drawn for. */
export function canDraw(recipe) {
  const sides = recipe === null ? [] : [recipe.height, recipe.width];
  return recipe?.colour === "grey" && sides.every((side) => side > 0 && side <= 64); // one below 0 may be any
}

export class Pad {
  /**
   * @param {HTMLCanvasElement} canvas to draw on
   * @param {HTMLElement} pen shows where the keyboard draws
   * @param {HTMLInputElement} brush width, in pixels of the model
   * @param {HTMLInputElement} shade of the ink, in per cent
   * @param {(blob: Blob) => void} drawn is told of every picture
   */
  constructor(canvas, pen, brush, shade, drawn) {
    Object.assign(this, { canvas, pen, brush, shade, drawn });
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.before = [];
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => this.end());
    canvas.addEventListener("keydown", (event) => this.press(event));
    canvas.addEventListener("keyup", (event) => { if (event.key === " ") this.end(); });
    canvas.addEventListener("blur", () => this.end());
  }

  /** Prepare for a model. */
  fit(recipe) {
    if (this.width === recipe.width && this.height === recipe.height && this.polarity === recipe.polarity) return;
    [this.width, this.height, this.polarity] = [recipe.width, recipe.height, recipe.polarity];
    this.paper = recipe.polarity === "dark-on-light" ? 255 : recipe.background[0];
    this.scale = Math.floor(SIDE / Math.max(this.width, this.height));
    this.canvas.width = this.width * this.scale;
    this.canvas.height = this.height * this.scale;
    this.cell = [this.width / 2, this.height / 2];
    this.clear();
  }

  clear() {
    this.before = [];
    this.context.fillStyle = grey(this.paper);
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.placePen();
  }

  undo() {
    const last = this.before.pop();
    if (last) this.context.putImageData(last, 0, 0);
    if (last) this.tell();
  }

  begin(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.keep();
    this.from = this.place(event);
    this.stroke(this.from);
  }

  move(event) {
    if (!this.from) return;
    for (const part of event.getCoalescedEvents?.() ?? [event]) this.stroke(this.place(part));
  }

  end() {
    if (!this.from) return;
    this.from = null;
    this.tell();
  }

  /** Arrow keys move the pen, and draw while the space bar is held. */
  press(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const step = steps[event.key];
    if (!step && event.key !== " ") return;
    event.preventDefault();
    if (event.key === " " && !event.repeat) {
      this.keep();
      this.from = this.penPlace();
      this.stroke(this.from);
    }
    if (!step) return;
    this.cell = [clamp(this.cell[0] + step[0], this.width), clamp(this.cell[1] + step[1], this.height)];
    this.placePen();
    if (this.from) this.stroke(this.penPlace());
  }

  penPlace() {
    return this.cell.map((side) => side * this.scale);
  }

  placePen() {
    this.pen.style.left = `${(this.cell[0] / this.width) * 100}%`;
    this.pen.style.top = `${(this.cell[1] / this.height) * 100}%`;
  }

  keep() {
    this.before.push(this.context.getImageData(0, 0, this.canvas.width, this.canvas.height));
    if (this.before.length > UNDONE) this.before.shift();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    return [x * this.canvas.width, y * this.canvas.height];
  }

  stroke(to) {
    const ink = Math.round(255 * this.shade.value / 100);
    Object.assign(this.context, { lineCap: "round", lineJoin: "round", lineWidth: this.brush.value * this.scale });
    this.context.strokeStyle = grey(this.polarity === "dark-on-light" ? 255 - ink : ink);
    this.context.beginPath();
    this.context.moveTo(...this.from);
    this.context.lineTo(to[0] + 0.01, to[1]); // a line of no length would leave no dot
    this.context.stroke();
    this.from = to;
  }

  tell() {
    clearTimeout(this.timer);
    this.timer = setTimeout(async () => this.drawn(await this.picture()), PAUSE);
  }

  /** The drawing at the model's size: each pixel is the mean of those that it covers. */
  async picture() {
    const small = document.createElement("canvas");
    [small.width, small.height] = [this.width, this.height];
    const pixels = new ImageData(this.width, this.height);
    const drawn = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height).data;
    for (let y = 0; y < this.height; y += 1) {
      for (let x = 0; x < this.width; x += 1) {
        const value = this.mean(drawn, x, y);
        pixels.data.set([value, value, value, 255], 4 * (y * this.width + x));
      }
    }
    small.getContext("2d").putImageData(pixels, 0, 0);
    return new Promise((done) => small.toBlob(done, "image/png"));
  }

  mean(drawn, x, y) {
    let sum = 0;
    for (let row = y * this.scale; row < (y + 1) * this.scale; row += 1) {
      const first = row * this.canvas.width + x * this.scale;
      for (let place = first; place < first + this.scale; place += 1) sum += drawn[4 * place];
    }
    return Math.round(sum / this.scale ** 2);
  }
}

const grey = (value) => `rgb(${value} ${value} ${value})`;
const clamp = (value, most) => Math.min(most - 0.5, Math.max(0.5, value));
