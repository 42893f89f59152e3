// Talks to the service that this page came from: relative addresses alone, so that a path prefix of a proxy holds.

const MOST_TRIES = 10;

let key = null; // in memory alone: no storage, no cookie

/** What the service refused, in its own sentence. */
export class Refused extends Error {
  constructor(status, sentence, retryAfter = null) {
    super(sentence);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export const useKey = (value) => { key = value || null; };
export const hasKey = () => key !== null;

/** The whole address of a path of the service. */
export const address = (path) => new URL(path, document.baseURI).href;

/** The path of a model's version: `what` is a route below it. */
export const versionPath = (model, version, what = "") =>
  `v2/models/${encodeURIComponent(model)}/versions/${version}${what && `/${what}`}`;

/** The path that asks a model; `choice` is {version} or {label}, and `top` how many classes are wanted. */
export function predictPath(model, choice, top) {
  const query = new URLSearchParams({ model });
  if (choice.version) query.set("version", choice.version);
  else if (choice.label && choice.label !== "latest") query.set("label", choice.label);
  if (top) query.set("top", top);
  return `predict?${query}`;
}

/** What the page shows by itself it may wait for: a key that is used too often is used again when it may be. */
export async function getJson(path) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await (await send(path)).json();
    } catch (error) {
      if (error.status !== 429 || tries === MOST_TRIES) throw error;
      await new Promise((done) => setTimeout(done, 1000 * (error.retryAfter ?? 1)));
    }
  }
}

/** Ask; gives the answer, the version that gave it, and where the time went. */
export async function ask(path, body, type) {
  const started = performance.now();
  const response = await send(path, body, type);
  const answer = await response.json();
  return {
    answer,
    version: Number(response.headers.get("x-model-version")) || null,
    stages: stages(response.headers.get("server-timing") ?? ""),
    roundTrip: performance.now() - started,
  };
}

/** The picture that a model's version makes of a picture, as a blob. */
export async function preview(model, version, body, type) {
  return (await send(versionPath(model, version, "preview"), body, type)).blob();
}

async function send(path, body, type) {
  const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
  if (type) headers["Content-Type"] = type;
  const method = body === undefined ? "GET" : "POST";
  let response;
  try {
    response = await fetch(address(path), { method, body, headers, cache: "no-store" });
  } catch {
    throw new Refused(0, "The service did not answer: it is not there, or it closed the connection.");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let sentence = response.statusText || "refused";
  try {
    sentence = (await response.json()).error ?? sentence;
  } catch { /* a proxy's own page */ }
  return new Refused(response.status, sentence, Number(response.headers.get("retry-after")) || null);
}

/** Milliseconds by stage, of the header Server-Timing: `parse;dur=0.1, queue;dur=0.0`. */
function stages(header) {
  const found = [...header.matchAll(/([a-z]+);dur=([\d.]+)/g)];
  return Object.fromEntries(found.map(([, name, milliseconds]) => [name, Number(milliseconds)]));
}
