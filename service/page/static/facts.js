// What the service knows of a version, in words: what was proved, how a picture becomes its input, where time went.

import { element, grouped, percent, small } from "./dom.js";

const DEVICES = { cpu: "CPU", cuda: "GPU" };
const STAGES = { parse: "decode", decode: "decode", queue: "queue", infer: "run" };

/** The facts of a version as a list of terms; `shadow` is the comparison that runs beside live requests, or null. */
export function factsOf(proof, shadow) {
  const rows = [
    ["Version", `${proof.name}, version ${proof.version}`],
    ["Proof", proofOf(proof)],
    ["Accuracy", accuracyOf(proof)],
    ["Fold", foldOf(proof.published?.fold)],
    ["Shadow", shadowOf(shadow)],
    ["Device", deviceOf(proof)],
    ["SHA-256", element("span", { className: "digest", textContent: proof.sha256 })],
  ];
  const known = rows.filter(([, shown]) => shown !== null);
  return element("dl", {}, ...known.flatMap(([term, shown]) => [element("dt", { textContent: term }), element("dd", {}, shown)]));
}

/** The device, and on request why it is not another. */
function deviceOf({ provider, fallback }) {
  const device = DEVICES[provider] ?? provider;
  if (!fallback) return device;
  return element("details", {}, element("summary", { textContent: `${device}, and why no other` }), fallback);
}

function proofOf({ golden, verified }) {
  if (!verified) return "Not verified: it came without golden answers, so that nothing is proved of what it says.";
  return `Answers as the trained network did: ${golden.agreeing} of ${golden.rows} golden inputs, largest error `
    + `${small(golden.largest_error)} of the largest value; ${small(golden.tolerance)} is allowed here.`;
}

function accuracyOf({ accuracy, published }) {
  if (accuracy === null) return null;
  const count = published?.accuracy?.images ?? published?.accuracy?.examples;
  return `Right on ${percent2(accuracy)}${Number.isInteger(count) ? ` of ${grouped(count)} test inputs` : " of its test inputs"}.`;
}

const percent2 = (share) => `${Number((share * 100).toFixed(2))} %`;

function foldOf(fold) {
  if (!Number.isInteger(fold?.folded)) return null;
  if (!fold.folded && !fold.refused) return "It has no norms to fold.";
  const stayed = fold.refused ? `${fold.refused} stayed` : "none stayed";
  return `${fold.folded} ${fold.folded === 1 ? "norm" : "norms"} folded into the weights, ${stayed}.`;
}

function shadowOf(shadow) {
  if (!shadow?.rows) return null;
  return `Beside live requests, version ${shadow.version} agrees on ${percent(shadow.agreement)} of ${grouped(shadow.rows)} rows.`;
}

/** A recipe in words. */
export function recipeText(recipe) {
  const size = ([height, width]) => (height > 0 && width > 0 ? `${width} × ${height}` : "any number of");
  const rules = {
    none: () => (recipe.height > 0 && recipe.width > 0 ? "A picture has to have this size." : "A picture keeps its size."),
    shorter: () => `The shorter side becomes ${recipe.resize[0]}, the aspect is kept (${recipe.filter}).`,
    exact: () => `A picture is resized to ${size(recipe.resize)} (${recipe.filter}).`,
    letterbox: () => `A picture is fitted into ${size(recipe.resize)}, its aspect kept (${recipe.filter}).`,
    fit: () => `A picture is fitted into ${size(recipe.resize)}, its aspect kept (${recipe.filter}).`,
    cover: () => `A picture covers ${size(recipe.resize)}, its aspect kept (${recipe.filter}).`,
  };
  const polarity = { "light-on-dark": "It was trained light on dark", "dark-on-light": "It was trained dark on light" };
  return [
    `${size([recipe.height, recipe.width])} pixels, ${recipe.colour === "grey" ? "grey" : recipe.colour}.`,
    rules[recipe.rule](),
    recipe.crop ? `The middle ${size(recipe.crop)} is cut out.` : "",
    recipe.polarity ? `${polarity[recipe.polarity]}; nothing is inverted.` : "",
  ].filter(Boolean).join(" ");
}

/** Show where the time of an answer went, as a bar and in words. */
export function showTime(bar, text, { stages, roundTrip }) {
  const total = stages.total ?? 0;
  const named = Object.entries(STAGES).filter(([stage]) => stage in stages).map(([stage, name]) => [name, stages[stage]]);
  const rest = Math.max(0, total - named.reduce((sum, [, spent]) => sum + spent, 0));
  bar.replaceChildren(...[...named, ["rest", rest]].map(([name, spent]) => {
    const part = element("i", { className: name, title: `${name} ${milliseconds(spent)}` });
    part.style.flexGrow = String(spent);
    return part;
  }));
  const parts = named.map(([name, spent]) => element("span", { className: `stage ${name}`, textContent: `${name} ${milliseconds(spent)}` }));
  text.replaceChildren(...parts.flatMap((part) => [part, " "]),
    element("span", { className: "stage", textContent: `${milliseconds(total)} in the service, ${milliseconds(roundTrip)} with the way there and back` }));
}

const milliseconds = (value) => `${value < 10 ? value.toFixed(2) : value.toFixed(0)} ms`;
