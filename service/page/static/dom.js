// Small things about elements and numbers that several modules of the page need.

export const byId = (id) => document.getElementById(id);

/** A new element with these properties and children; texts stay texts. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** Fill a list of choices and keep what was chosen where it is still there. */
export function fill(select, options) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => element("option", { value, textContent: text })));
  if (options.some(([value]) => value === before)) select.value = before;
}

/** The radio of a group that is chosen. */
export const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`)?.value;

export function percent(share) {
  if (share > 0 && share < 0.0005) return "< 0.1 %";
  return `${(share * 100).toFixed(share > 0.99 && share < 1 ? 2 : 1)} %`;
}

/** A small number in the way people write it: 3.1 × 10⁻⁷. */
export function small(value) {
  if (value === 0) return "0";
  const [digits, power] = value.toExponential(1).split("e");
  const raised = [...String(Number(power))].map((sign) => (sign === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[sign])).join("");
  return digits === "1.0" ? `10${raised}` : `${digits} × 10${raised}`;
}

export const grouped = (number) => number.toLocaleString("en");

/** A float as it is worth reading. */
export const readable = (number) => (typeof number === "number" && !Number.isInteger(number) ? Number(number.toPrecision(5)) : number);
