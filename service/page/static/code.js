// The question as a program would ask it: curl, Python with nothing but its standard library, JavaScript.

import { address, hasKey } from "./service.js";

const INLINE = 8_000; // characters of base64 that are written into the code; a larger picture is read from its file

/** What is asked, in a form that code can be written from: {path, type, body} or {path, type, file}. */
export async function questionForCode(path, question) {
  if (question.kind === "json") return { path, type: "application/json", body: question.text };
  const text = await base64(question.blob);
  if (text.length > INLINE) return { path, type: question.type, file: fileOf(question) };
  return { path, type: "application/json", body: JSON.stringify({ instances: [{ b64: text }] }) };
}

/** The name of the picture's file; a sample may have none. */
const fileOf = ({ name, type }) => (/\.\w+$/.test(name) ? name : `picture.${type.split("/")[1]}`);

async function base64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 32_768) text += String.fromCharCode(...bytes.subarray(at, at + 32_768));
  return btoa(text);
}

export const WRITERS = { curl, python, javascript };

function curl({ path, type, body, file }) {
  const key = hasKey() ? ` \\\n  -H "Authorization: Bearer $FOLDSERVE_KEY"` : "";
  const data = file ? `--data-binary @${quoted(file)}` : `--data-binary ${quoted(body)}`;
  return `curl -s ${quoted(address(path))} \\\n  -H 'Content-Type: ${type}'${key} \\\n  ${data}`;
}

function python({ path, type, body, file }) {
  const key = hasKey() ? `, "Authorization": "Bearer " + os.environ["FOLDSERVE_KEY"]` : "";
  return [
    `import json${hasKey() ? ", os" : ""}, urllib.request`,
    "",
    file ? `data = open(${JSON.stringify(file)}, "rb").read()` : `data = ${pythonText(body)}.encode()`,
    `request = urllib.request.Request(`,
    `    ${JSON.stringify(address(path))},`,
    `    data, {"Content-Type": ${JSON.stringify(type)}${key}},`,
    `)`,
    `print(json.load(urllib.request.urlopen(request)))`,
  ].join("\n");
}

function javascript({ path, type, body, file }) {
  const key = hasKey() ? `, Authorization: "Bearer " + process.env.FOLDSERVE_KEY` : "";
  return [
    ...(file ? [`import { readFile } from "node:fs/promises";`, ""] : []),
    `const response = await fetch(${JSON.stringify(address(path))}, {`,
    `  method: "POST",`,
    `  headers: { "Content-Type": ${JSON.stringify(type)}${key} },`,
    `  body: ${file ? `await readFile(${JSON.stringify(file)})` : JSON.stringify(body)},`,
    `});`,
    `console.log(await response.json());`,
  ].join("\n");
}

const quoted = (text) => `'${text.replaceAll("'", String.raw`'\''`)}'`;

/** A text as Python reads it, which knows the escapes of JSON. */
const pythonText = (text) => JSON.stringify(text);
