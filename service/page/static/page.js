// The page: what is chosen, what is asked, and what is shown. Everything it knows comes from routes of the service.

import { answerOf, verdict } from "./answer.js";
import { Camera, whyNoCamera } from "./camera.js";
import { questionForCode, WRITERS } from "./code.js";
import { byId, chosen, element, fill } from "./dom.js";
import { canDraw, Pad } from "./draw.js";
import { factsOf, recipeText, showTime } from "./facts.js";
import { ask, getJson, hasKey, predictPath, preview, Refused, useKey, versionPath } from "./service.js";

const RETRY_SECONDS = 2; // while the service is not ready, where it does not say
const MOST_FIELDS = 32; // of a row that is filled in field by field

const state = { models: [], model: null, labels: {}, versions: [], proof: null, names: null, inputs: [], samples: [], question: null, turn: 0, running: 0, retry: null };
const pad = new Pad(byId("pad"), byId("pen"), byId("brush"), byId("shade"), (blob) => askPicture(blob, "drawing.png", false));
const camera = new Camera(byId("video"));
const addresses = new Map(); // of blobs that an image shows, by its element

// What is chosen -------------------------------------------------------------------------------------------------------

/** Run something that asks the service; what is refused is shown, and asked again where that helps. */
async function attempt(action) {
  clearTimeout(state.retry);
  busy(1);
  try {
    await action();
    return true;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    const isLoad = LOADS.includes(action), isAskedAgain = isLoad && [503, 0, 429].includes(error.status);
    if (error.status === 401) askForKey(error.message, action);
    else showTrouble(error, isAskedAgain);
    if (isLoad) showNothing(error, isAskedAgain);
    if (isAskedAgain) state.retry = setTimeout(() => attempt(action), 1000 * (error.retryAfter ?? RETRY_SECONDS));
    return false;
  } finally {
    busy(-1);
  }
}

function busy(change) {
  state.running += change;
  document.querySelector("main").ariaBusy = String(state.running > 0);
}

const LOADS = [loadModels, loadModel, loadVersion]; // asked again by the page itself; questions by people alone

async function loadModels() {
  state.models = (await getJson("v2")).models;
  if (!state.models.length) throw new Refused(503, "No model is served yet.");
  fill(byId("model"), state.models.map(({ name }) => [name, name]));
  byId("trouble").hidden = true;
  await loadModel();
}

async function loadModel() {
  const model = byId("model").value;
  const [metadata, shown] = await Promise.all([
    getJson(`v2/models/${encodeURIComponent(model)}`),
    getJson(`v2/repository/models/${encodeURIComponent(model)}`).catch(() => null), // a proxy may keep it for itself
  ]);
  const latest = state.models.find(({ name }) => name === model)?.version;
  Object.assign(state, { model, shadow: shown?.shadow ?? null, labels: shown?.labels ?? {} });
  state.labels = { latest: shown?.latest ?? latest, ...state.labels };
  state.versions = metadata.versions.map(Number).sort((a, b) => b - a);
  const versions = state.versions.map((version) => [`version:${version}`, String(version)]);
  fill(byId("version"), [...Object.entries(state.labels).map(([label, version]) => [`label:${label}`, `${label} (${version})`]), ...versions]);
  fill(byId("other"), [["", "nothing"], ...versions.map(([value, number]) => [value, `version ${number}`])]);
  byId("other").parentElement.hidden = state.versions.length < 2;
  await loadVersion();
}

async function loadVersion() {
  const version = versionOf(choice());
  const [proof, samples, metadata] = await Promise.all([
    getJson(versionPath(state.model, version, "proof")),
    getJson(versionPath(state.model, version, "samples")),
    getJson(versionPath(state.model, version)),
  ]);
  const labels = metadata.properties.labels;
  Object.assign(state, { proof, names: labels ? JSON.parse(labels) : null, inputs: metadata.inputs });
  byId("facts").replaceChildren(factsOf(proof, state.shadow));
  byId("recipe").textContent = proof.recipe ? recipeText(proof.recipe) : "";
  showSamples(samples.samples);
  showWays(samples.samples[0]);
  byId("trouble").hidden = true;
  document.body.classList.add("loaded");
  if (state.question === null) forget();
  await showCode();
}

/** The version or label that is chosen. */
function choice() {
  const [kind, value] = byId("version").value.split(":");
  return { [kind]: value };
}

const versionOf = ({ version, label }) => Number(version ?? state.labels[label]);

function showWays(first) {
  const { recipe } = state.proof;
  const ways = { picture: recipe !== null, draw: canDraw(recipe), camera: recipe !== null, row: fieldNames().length > 0, json: true };
  for (const input of document.querySelectorAll("input[name=way]")) input.parentElement.hidden = !ways[input.value];
  if (ways.draw) pad.fit(recipe);
  byId("pad-help").textContent = padHelp(recipe);
  if (first) fillIn(first);
  const way = ways[chosen("way")] ? chosen("way") : Object.keys(ways).find((name) => ways[name]);
  document.querySelector(`input[name=way][value=${way}]`).checked = true;
  showWay();
}

function padHelp(recipe) {
  const light = recipe?.polarity !== "dark-on-light";
  const trained = recipe?.polarity ? ", as the model was trained" : "";
  return `${light ? "Light on dark" : "Dark on light"}${trained}. Keyboard: arrows move the pen, the space bar held down draws.`;
}

function showWay() {
  const way = chosen("way");
  for (const part of document.querySelectorAll(".way")) part.hidden = part.id !== way;
  if (way !== "camera") stopCamera();
  const why = way === "camera" ? whyNoCamera() : null;
  byId("camera-note").textContent = why ?? "";
  byId("camera-start").disabled = why !== null;
}

// What is asked --------------------------------------------------------------------------------------------------------

function askPicture(blob, name, isShown = true) {
  if (isShown) {
    showBlob(byId("shown"), blob);
    byId("shown").alt = `Your picture: ${name}`;
    byId("shown").onerror = () => { byId("shown").hidden = true; byId("invitation").hidden = false; };
    byId("invitation").hidden = true;
    choose("picture");
  }
  state.question = { kind: "picture", blob, name, type: blob.type || "image/png" };
  return attempt(askNow);
}

function askText(text) {
  state.question = { kind: "json", text };
  return attempt(askNow);
}

/** Ask the chosen version, and the one beside it, and show what they say. */
async function askNow() {
  const { question } = state;
  if (question === null) return;
  const turn = state.turn += 1;
  const version = byId("other").value.split(":")[1];
  const beside = version && send(question, { version }).catch((refused) => ({ refused, version }));
  const answers = await Promise.all([send(question, choice()), beside]).catch((error) => error);
  if (turn !== state.turn) return; // something else was asked meanwhile
  if (answers instanceof Error) {
    showNoAnswer(); // what stands there answers another question
    await showCode();
    throw answers;
  }
  const [one, two] = answers;
  byId("trouble").hidden = true;
  showAnswers(one, two);
  await showCode();
  if (one.version && one.version !== state.proof.version) await follow(one.version);
  await showPreview(question, one.version ?? state.proof.version, turn);
}

function send(question, wanted) {
  const body = question.kind === "json" ? question.text : question.blob;
  const type = question.kind === "json" ? "application/json" : question.type;
  return ask(pathOf(question, wanted), body, type);
}

/** Tensors in the protocol's own form go to its route, everything else to /predict. */
function pathOf(question, wanted) {
  if (question.kind === "json" && hasTensors(question.text)) return versionPath(state.model, versionOf(wanted), "infer");
  return predictPath(state.model, wanted);
}

function hasTensors(text) {
  try {
    return Array.isArray(JSON.parse(text).inputs);
  } catch {
    return false; // the service says what is wrong with it
  }
}

/** A label moved while the page was open: show what answers now. */
async function follow(version) {
  byId("news").textContent = `Version ${version} answers now.`;
  state.models = (await getJson("v2")).models;
  await loadModel();
}

// What is shown --------------------------------------------------------------------------------------------------------

function showAnswers(one, two) {
  const columns = [one, two].filter(Boolean).map((reply) => element("div", {},
    two ? element("p", { className: "which", textContent: `Version ${reply.version}` }) : null,
    ...(reply.refused ? [element("p", { className: "trouble", textContent: reply.refused.message })] : answerOf(reply.answer, state.names))));
  byId("said").className = two ? "beside" : "";
  byId("said").replaceChildren(...columns);
  byId("verdict").hidden = !two || Boolean(two.refused);
  if (!byId("verdict").hidden) byId("verdict").textContent = verdict(one, two, state.names);
  byId("details").hidden = false;
  showTime(byId("stages"), byId("spent"), one);
}

/** Show the very pixels that the model got; the service makes them, since a browser reduces a picture in another way. */
async function showPreview(question, version, turn) {
  const isPicture = question.kind === "picture" && state.proof.recipe !== null;
  byId("saw").hidden = !isPicture;
  if (!isPicture) return;
  const seen = await preview(state.model, version, question.blob, question.type);
  if (turn !== state.turn) return;
  showBlob(byId("preview"), seen);
  await byId("preview").decode();
  const { naturalWidth, naturalHeight } = byId("preview");
  byId("preview").alt = `Your picture as the model gets it, ${naturalWidth} by ${naturalHeight} pixels`;
}

async function showCode() {
  const question = state.question ?? { kind: "json", text: byId("body").value };
  const asked = await questionForCode(pathOf(question, choice()), question);
  byId("snippet").textContent = WRITERS[chosen("language")](asked);
}

function showTrouble(error, isAskedAgain = false) {
  const sentence = error.retryAfter && !isAskedAgain ? `${error.message.replace(/\.?$/, ".")} Try again in ${error.retryAfter} s.` : error.message;
  byId("trouble").replaceChildren(...(error.status ? [element("b", { textContent: String(error.status) }), " "] : []), sentence);
  byId("trouble").hidden = false;
}

function showBlob(image, blob) {
  URL.revokeObjectURL(addresses.get(image));
  addresses.set(image, URL.createObjectURL(blob));
  image.src = addresses.get(image);
  image.hidden = false;
  image.onload = () => image.classList.toggle("small", image.naturalWidth <= 96);
}

function showSamples(samples) {
  state.samples = samples;
  byId("samples").hidden = !samples.length;
  byId("strip").className = samples[0]?.b64 === null ? "rows" : "";
  byId("strip").replaceChildren(...samples.map((sample) => {
    const said = sample.expected.label ?? sample.expected.labels?.[0]?.label;
    const button = element("button", { type: "button", title: said ? `${sample.name}: ${said}` : sample.name });
    if (sample.b64 === null) button.textContent = sample.name;
    else button.append(imageOf(sample, said));
    button.addEventListener("click", () => takeSample(sample));
    return button;
  }));
}

function imageOf(sample, said) {
  const image = element("img", { alt: said ? `Sample: ${said}` : `Sample ${sample.name}`, width: 56, height: 56 });
  showBlob(image, blobOf(sample));
  return image;
}

function blobOf({ b64, media_type: type }) {
  return new Blob([Uint8Array.from(atob(b64), (letter) => letter.charCodeAt(0))], { type });
}

function takeSample(sample) {
  if (sample.b64 !== null) {
    askPicture(blobOf(sample), sample.name);
    return;
  }
  fillIn(sample);
  if (chosen("way") === "row") askRow();
  else askText(byId("body").value);
}

/** Put a sample into the fields of a row and into the body. */
function fillIn({ instance }) {
  byId("body").value = JSON.stringify({ instances: [instance] });
  const names = fieldNames();
  const values = Array.isArray(instance) ? instance : Object.values(instance);
  byId("fields").replaceChildren(...names.map((name, index) => element("label", {}, name, " ",
    element("input", { type: "number", step: "any", value: String(values[index]), required: true, name: `field-${index}` }))));
}

/** Names of the values of a row, where it is worth a field for each. */
function fieldNames() {
  const [only, second] = state.inputs;
  const isRow = state.proof.recipe === null && !second && only.shape.length === 2 && only.datatype !== "BYTES";
  if (!isRow || only.shape[1] < 1 || only.shape[1] > MOST_FIELDS) return [];
  return state.proof.columns ?? Array.from({ length: only.shape[1] }, (_, index) => `value ${index + 1}`);
}

function askRow() {
  const values = [...byId("fields").querySelectorAll("input")].map((input) => Number(input.value));
  const names = state.proof.columns;
  const instance = names ? Object.fromEntries(names.map((name, index) => [name, values[index]])) : values;
  askText(JSON.stringify({ instances: [instance] }));
}

// A key ----------------------------------------------------------------------------------------------------------------

function askForKey(reason, action) {
  byId("key-title").textContent = reason ? "This service asks for a key" : "A key for this service";
  byId("key-reason").textContent = reason;
  const dialog = byId("key-dialog");
  dialog.onclose = () => {
    if (dialog.returnValue === "use") useKey(byId("key").value.trim());
    if (dialog.returnValue === "none") useKey(null);
    byId("key").value = "";
    byId("key-button").textContent = hasKey() ? "Key in use" : "Key";
    if (dialog.returnValue === "use") attempt(action);
    else if (reason) showTrouble(new Refused(401, reason));
  };
  dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
}

// What people do -------------------------------------------------------------------------------------------------------

function choose(way) {
  document.querySelector(`input[name=way][value=${way}]`).checked = true;
  showWay();
}

function takeFile(file) {
  if (file && state.proof?.recipe) askPicture(file, file.name || "picture.png");
}

function stopCamera() {
  camera.stop();
  byId("camera-take").disabled = true;
}

async function startCamera() {
  try {
    await camera.start();
    byId("camera-take").disabled = false;
  } catch (error) {
    byId("camera-note").textContent = error.message;
  }
}

function listen() {
  const on = (id, event, action) => byId(id).addEventListener(event, action);
  const again = (load) => async () => { byId("news").textContent = ""; if (await attempt(load)) attempt(askNow); };
  on("model", "change", () => { state.question = null; attempt(loadModel); });
  on("version", "change", again(loadVersion));
  on("other", "change", () => attempt(askNow));
  for (const input of document.querySelectorAll("input[name=way]")) input.addEventListener("change", showWay);
  for (const input of document.querySelectorAll("input[name=language]")) input.addEventListener("change", showCode);
  on("file", "change", () => { takeFile(byId("file").files[0]); byId("file").value = ""; });
  on("clear", "click", () => pad.clear());
  on("undo", "click", () => pad.undo());
  on("camera-start", "click", startCamera);
  on("camera-take", "click", async () => askPicture(await camera.take(), "photo.jpg", false));
  on("row", "submit", (event) => { event.preventDefault(); askRow(); });
  on("json", "submit", (event) => { event.preventDefault(); askText(byId("body").value); });
  on("body", "keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("json").requestSubmit(); });
  on("key-button", "click", () => askForKey("", loadModels));
  on("copy", "click", copy);
  document.addEventListener("paste", paste);
  for (const event of ["dragenter", "dragover", "dragleave", "drop"]) document.addEventListener(event, drag);
}

function drag(event) {
  event.preventDefault(); // a browser would leave the page and show the picture
  byId("drop").classList.toggle("over", event.type === "dragenter" || event.type === "dragover");
  if (event.type === "drop") takeFile(event.dataTransfer.files[0]);
}

function paste(event) {
  const [file] = event.clipboardData.files;
  if (!file) return;
  event.preventDefault();
  takeFile(file);
}

async function copy() {
  const text = byId("snippet").textContent;
  try {
    await navigator.clipboard.writeText(text);
    byId("copied").textContent = "Copied";
  } catch { // without HTTPS there is no clipboard: it is marked, to be copied by hand
    getSelection().selectAllChildren(byId("snippet"));
    byId("copied").textContent = "Marked; copy it with Ctrl + C";
  }
}

/** Leave out what there is only for a version that is known, and say how it goes on. */
function showNothing(error, isAskedAgain) {
  forget();
  document.body.classList.remove("loaded");
  const isClosed = error.status === 401 || error.status === 403;
  const outlook = isClosed ? "With a key that may read, this page shows what is served." : isAskedAgain ? "This page asks again by itself." : "";
  byId("said").firstChild.textContent = outlook;
  byId("trouble").hidden = error.status === 401; // the question for a key says so
}

function invitation() {
  const sample = state.samples.length ? ", or take a sample" : "";
  if (state.proof === null) return "";
  if (state.proof.recipe === null) return `Fill in what you want to ask${sample}.`;
  return canDraw(state.proof.recipe) ? `Drop a picture, draw one${sample}.` : `Drop a picture${sample}.`;
}

/** Forget the last question: another model may not take it. */
function forget() {
  Object.assign(state, { question: null, turn: state.turn + 1 });
  showNoAnswer();
  for (const id of ["shown", "trouble"]) byId(id).hidden = true;
  byId("invitation").hidden = false;
  byId("news").textContent = "";
}

function showNoAnswer() {
  byId("said").className = "";
  byId("said").replaceChildren(element("p", { className: "empty", textContent: invitation() }));
  for (const id of ["verdict", "details"]) byId(id).hidden = true;
}

listen();
await attempt(loadModels);
