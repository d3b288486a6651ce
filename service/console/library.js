// Presets, which the service keeps for their owner, and earlier prompts, which this browser keeps apart for each owner.

import { call } from "./api.js";

const MAX_PROMPTS = 30;
const OLD_PRESETS = "presets"; // where earlier releases kept them in the browser

const $ = (id) => document.getElementById(id);
const section = $("library");
let owner = "";
let page = {}; // what the rest of the page gives to `start`

// `entered()` returns the options that a preset keeps as a form, and `ofEntries(entries)` those of old entries.
// `onPreset(options)` and `onPrompt(text)` are called for the chosen one, `onError(error)` if a call fails.
export function start(callbacks) {
  page = callbacks;
  section.addEventListener("toggle", () => { if (section.open) showPresets().catch(page.onError); });
  $("save-preset").addEventListener("click", save);
  $("preset-name").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // it would send the request
    save();
  });
}

export async function open(ownerName) {
  owner = ownerName ?? "";
  showPrompts();
  await moveOldPresets();
  if (section.open) await showPresets();
}

// Presets

async function save() {
  const name = $("preset-name").value.trim();
  if (!name) { $("preset-name").focus(); return; }
  try {
    await put(name, page.entered());
    $("preset-name").value = "";
    await showPresets();
    page.onError(null);
  } catch (error) { page.onError(error); }
}

function put(name, options) {
  return call(pathOf(name), { method: "PUT", body: options });
}

function pathOf(name) {
  return `/presets/${encodeURIComponent(name)}`;
}

async function showPresets() {
  const { presets } = await call("/presets");
  show("presets", presets.map(({ name, options }) => entry(name, () => page.onPreset(options), async () => {
    try {
      await call(pathOf(name), { method: "DELETE" });
    } catch (error) { if (error.status !== 404) { page.onError(error); return; } }
    await showPresets().catch(page.onError);
  })));
}

// Earlier releases kept presets in the browser: move them to the service, each when it has none of that name.
async function moveOldPresets() {
  const old = read(OLD_PRESETS, {});
  if (!Object.keys(old).length) return;
  const taken = new Set((await call("/presets")).presets.map(({ name }) => name));
  for (const [name, entries] of Object.entries(old)) {
    const allowed = name.replaceAll("/", "-");
    if (!taken.has(allowed)) await put(allowed, page.ofEntries(entries));
    delete old[name];
    write(OLD_PRESETS, old); // one by one: a failure loses none, and moves none twice
  }
  localStorage.removeItem(keyOf(OLD_PRESETS));
}

// Earlier prompts

export function rememberPrompt(text) {
  write("prompts", [text, ...read("prompts", []).filter((other) => other !== text)].slice(0, MAX_PROMPTS));
  showPrompts();
}

function showPrompts() {
  const prompts = read("prompts", []);
  show("prompts", prompts.map((text) => entry(text, () => page.onPrompt(text), () => {
    write("prompts", read("prompts", []).filter((other) => other !== text));
    showPrompts();
  })));
  $("prompts-title").hidden = prompts.length === 0;
}

function keyOf(name) {
  return `${name}:${owner}`;
}

function read(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(keyOf(name))) ?? fallback;
  } catch { return fallback; } // another program wrote it
}

function write(name, value) {
  localStorage.setItem(keyOf(name), JSON.stringify(value));
}

// Both lists

// Replace the entries of a list. The focus stays at its place in the list.
function show(listId, entries) {
  const list = $(listId);
  const place = [...list.querySelectorAll(".forget")].indexOf(document.activeElement);
  list.replaceChildren(...entries);
  if (place < 0) return;
  const forgetters = list.querySelectorAll(".forget");
  (forgetters[Math.min(place, forgetters.length - 1)] ?? $("preset-name")).focus();
}

function entry(text, choose, forget) {
  const item = $("library-entry").content.firstElementChild.cloneNode(true);
  const [chooser, forgetter] = item.children;
  chooser.textContent = text;
  chooser.addEventListener("click", choose);
  forgetter.setAttribute("aria-label", `Delete “${text}”`);
  forgetter.addEventListener("click", forget);
  return item;
}
