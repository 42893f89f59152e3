// What a model says, in the form of its task: classes, labels, values, an embedding, or tensors as they are.

import { element, grouped, percent, readable } from "./dom.js";

const MOST_BARS = 10;
const MOST_ROWS = 12;
const LONG = 32; // characters of a name that is too long for a headline
const MOST_TEXT = 600; // characters of a tensor
const MOST_VALUES = 160; // of an embedding that are drawn

/** The elements that show an answer. */
export function answerOf(answer, names) {
  const predictions = answer.predictions ?? [{ outputs: Object.fromEntries(answer.outputs.map((one) => [one.name, one.data])) }];
  const shown = predictions.slice(0, MOST_ROWS).map((prediction, row) => {
    const parts = partsOf(prediction, names);
    return predictions.length === 1 ? parts : [element("h3", { textContent: `Row ${row + 1}` }), ...parts];
  });
  const rest = predictions.length - MOST_ROWS;
  return [...shown.flat(), ...(rest > 0 ? [note(`and ${grouped(rest)} rows more`)] : [])];
}

function partsOf(prediction, names) {
  if (prediction.probabilities) return classes(prediction, names);
  if (prediction.labels) return labels(prediction.labels);
  if (prediction.values) return values(prediction.values);
  if (prediction.embedding) return embedding(prediction.embedding);
  return Object.entries(prediction.outputs).flatMap(([name, value]) => tensor(name, value));
}

function classes(prediction, names) {
  const name = (id) => names?.[id] ?? `class ${id}`;
  const order = prediction.probabilities.map((share, id) => [share, id]).sort((a, b) => b[0] - a[0] || a[1] - b[1]);
  return [
    headline(name(prediction.class_id), percent(prediction.confidence)),
    bars(order.slice(0, MOST_BARS).map(([share, id]) => [name(id), share])),
  ];
}

function labels(given) {
  if (!given.length) return [headline("None of the labels", "")];
  const name = (label) => label.label ?? `label ${label.class_id}`;
  return [
    headline(given.length === 1 ? name(given[0]) : `${given.length} labels`, ""),
    bars(given.slice(0, 2 * MOST_BARS).map((label) => [name(label), label.probability])),
  ];
}

function values(row) {
  if (row.length === 1) return [headline(String(readable(row[0])), "")];
  return [headline(`${row.length} values`, ""), element("p", { className: "numbers", textContent: row.slice(0, 64).map(readable).join(", ") })];
}

function embedding(row) {
  const length = Math.sqrt(row.reduce((sum, value) => sum + value * value, 0));
  return [
    headline(`${grouped(row.length)} values`, ""),
    chart(row.slice(0, MOST_VALUES)),
    note(`Length ${readable(length)}${row.length > MOST_VALUES ? `; the first ${MOST_VALUES} are drawn` : ""}.`),
  ];
}

function tensor(name, value) {
  const text = JSON.stringify(value, (key, inner) => readable(inner));
  const cut = text.length > MOST_TEXT ? `${text.slice(0, MOST_TEXT)} …` : text;
  return [element("h3", { textContent: name }), element("p", { className: "numbers", textContent: cut })];
}

function headline(text, share) {
  const className = text.length > LONG ? "headline long" : "headline";
  return element("p", { className }, element("span", { textContent: text }), " ", element("span", { className: "share", textContent: share }));
}

function bars(rows) {
  return element("ol", { className: "bars" }, ...rows.map(([name, share]) => {
    const bar = element("i");
    bar.style.width = `${share * 100}%`;
    return element("li", {}, element("span", { textContent: name, title: name }), element("span", { className: "bar" }, bar),
      element("span", { className: "value", textContent: percent(share) }));
  }));
}

function chart(row) {
  const space = "http://www.w3.org/2000/svg";
  const [low, high] = [Math.min(0, ...row), Math.max(0, ...row)];
  const scale = 100 / (high - low || 1);
  const drawn = document.createElementNS(space, "svg");
  drawn.setAttribute("class", "chart");
  drawn.setAttribute("viewBox", `0 0 ${row.length} 100`);
  drawn.setAttribute("preserveAspectRatio", "none");
  drawn.setAttribute("aria-hidden", "true");
  row.forEach((value, x) => {
    const bar = document.createElementNS(space, "rect");
    const place = { x, y: (high - Math.max(0, value)) * scale, width: 0.8, height: Math.abs(value) * scale };
    for (const [name, number] of Object.entries(place)) bar.setAttribute(name, number);
    drawn.append(bar);
  });
  return drawn;
}

const note = (text) => element("p", { className: "note", textContent: text });

/** In a sentence how far two answers to one question are apart. */
export function verdict(one, two, names) {
  const [a, b] = [one.answer.predictions?.[0], two.answer.predictions?.[0]];
  if (a?.probabilities && b?.probabilities) return verdictOfClasses(a, b, one, two, names);
  const [ours, theirs] = [numbersOf(one.answer), numbersOf(two.answer)];
  if (ours.length !== theirs.length) return "Their answers have different forms.";
  if (a?.embedding) return `Cosine of the angle between them: ${readable(cosine(ours, theirs))}.`;
  const apart = Math.max(0, ...ours.map((value, index) => Math.abs(value - theirs[index])));
  return apart === 0 ? "Both say the same." : `Largest difference of a value: ${readable(apart)}.`;
}

function verdictOfClasses(a, b, one, two, names) {
  const name = (id) => names?.[id] ?? `class ${id}`;
  const apart = Math.max(...a.probabilities.map((share, id) => Math.abs(share - b.probabilities[id])));
  const said = a.class_id === b.class_id
    ? `Both say ${name(a.class_id)}.`
    : `They differ: version ${one.version} says ${name(a.class_id)}, version ${two.version} says ${name(b.class_id)}.`;
  return `${said} Largest difference of a probability: ${readable(apart)}.`;
}

function cosine(a, b) {
  const product = (x, y) => x.reduce((sum, value, index) => sum + value * y[index], 0);
  return product(a, b) / Math.sqrt(product(a, a) * product(b, b));
}

/** Every number of an answer, in order, but not what names its version. */
function numbersOf(answer) {
  const found = [];
  JSON.stringify(answer.predictions ?? answer.outputs.map((output) => output.data), (key, value) => {
    if (typeof value === "number") found.push(value);
    return value;
  });
  return found;
}
