// Presets and earlier prompts. The browser keeps them, apart for each owner.

const MAX_PROMPTS = 30;

const $ = (id) => document.getElementById(id);
let owner = "";

export function open(ownerName) {
  owner = ownerName ?? "";
  showAll();
}

function read(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(`${name}:${owner}`)) ?? fallback;
  } catch { return fallback; } // another program wrote it
}

function write(name, value) {
  localStorage.setItem(`${name}:${owner}`, JSON.stringify(value));
  showAll();
}

export function rememberPrompt(text) {
  write("prompts", [text, ...read("prompts", []).filter((other) => other !== text)].slice(0, MAX_PROMPTS));
}

let onChoose = () => {};
let entered = () => ({});

// `getEntered` returns what a preset keeps; `choose` is called with a preset's entries or `{ prompt }`.
export function start(getEntered, choose) {
  [entered, onChoose] = [getEntered, choose];
  $("save-preset").addEventListener("click", save);
  $("preset-name").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // it would send the request
    save();
  });
}

function save() {
  const name = $("preset-name").value.trim();
  if (!name) { $("preset-name").focus(); return; }
  const { prompt, ...options } = entered();
  write("presets", { ...read("presets", {}), [name]: options });
  $("preset-name").value = "";
}

function showAll() {
  const presets = read("presets", {});
  const prompts = read("prompts", []);
  $("presets").replaceChildren(...Object.keys(presets).sort().map((name) => entry(name, () => onChoose(presets[name]), () => {
    const { [name]: _, ...rest } = read("presets", {});
    write("presets", rest);
  })));
  $("prompts").replaceChildren(...prompts.map((text) => entry(text, () => onChoose({ prompt: text }), () => {
    write("prompts", read("prompts", []).filter((other) => other !== text));
  })));
  $("prompts-title").hidden = prompts.length === 0;
}

function entry(text, choose, forget) {
  const item = $("library-entry").content.firstElementChild.cloneNode(true);
  const [chooser, forgetter] = item.children;
  chooser.textContent = text;
  chooser.addEventListener("click", choose);
  forgetter.setAttribute("aria-label", `Forget “${text}”`);
  forgetter.addEventListener("click", forget);
  return item;
}
