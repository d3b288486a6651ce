// The form that requests a video.

import { unknownWords } from "./words.js";

const DRAFT = "draft";
const NUMBERS = [
  "num_frames", "num_segments", "num_inference_steps", "guidance_scale", "seed", "num_videos", "deadline_s",
];
const CHOICES = ["task", "quality", "priority"];
const NEEDED_LORAS = { distilled: "cfg_step_lora", refine: "refinement_lora" };

const $ = (id) => document.getElementById(id);
const form = $("order");
const fields = form.elements;
let limits = null; // of the checkpoint; null until a worker has registered
let knownWords = []; // none: all are known
let source = null; // { field, value, label }: an input that comes from a job

// What the checkpoint can do

export function showCapability(capability) {
  ({ limits } = capability);
  showExamples();
  showSizes();
  for (const option of fields.task.options) option.hidden = Boolean(option.value) && !capability.tasks.includes(option.value);
  for (const [name, lora] of Object.entries(NEEDED_LORAS)) {
    const isThere = capability.loras.includes(lora);
    fields[name].closest("label").hidden = fields[name].disabled = !isThere;
  }
  fields.num_inference_steps.max = limits.max_num_inference_steps;
  fields.guidance_scale.max = limits.max_guidance_scale;
  fields.num_segments.max = limits.max_num_segments;
  fields.num_frames.max = limits.max_num_frames;
  fields.num_inference_steps.placeholder = limits.num_inference_steps;
  fields.guidance_scale.placeholder = limits.guidance_scale;
  fields.num_frames.placeholder = limits.default_num_frames;
  knownWords = capability.known_words ?? [];
  $("known-words").hidden = !knownWords.length;
  $("known-words-list").textContent = knownWords.join(", ");
  warnOfWords();
}

function showExamples() {
  $("examples").replaceChildren(...limits.example_prompts.map((text) => {
    const item = $("example").content.firstElementChild.cloneNode(true);
    item.firstElementChild.textContent = text;
    return item;
  }));
}

function showSizes() {
  const names = Object.keys(limits.buckets);
  const sizes = names.flatMap((name) => Object.values(limits.buckets[name]).map(([height, width]) => `${width}×${height}`));
  $("sizes").replaceChildren(...[...new Set([...names, ...sizes])].map((text) => new Option(text)));
  const escaped = names.map((name) => name.replace(/[\\^$.*+?()[\]{}|\/]/g, "\\$&"));
  fields.size.pattern = [...escaped, "\\d+\\s*[x×]\\s*\\d+"].join("|");
  fields.size.title = `${names.join(", ")}, or width × height`;
}

function warnOfWords() {
  const unknown = unknownWords(fields.prompt.value, knownWords);
  $("unknown-words").hidden = unknown.length === 0;
  $("unknown-words").textContent = `This checkpoint does not know: ${unknown.join(", ")}`;
}

// What was entered

export function body() {
  const sent = new FormData();
  const entered = new FormData(form);
  const [size, file, text] = ["size", "file", "prompt"].map((name) => entered.get(name));
  const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
  const segmented = entered.get("task") === "long_video" && lines.length > 1;
  for (const line of segmented ? lines : [text]) sent.append(segmented ? "prompts" : "prompt", line);
  for (const name of [...CHOICES, ...NUMBERS]) if (entered.get(name)) sent.append(name, entered.get(name));
  for (const name of Object.keys(NEEDED_LORAS)) if (entered.has(name)) sent.append(name, "true");
  const [width, height] = size.split(/\s*[x×]\s*/);
  if (height) { sent.append("width", width); sent.append("height", height); } else if (size) sent.append("resolution", size);
  if (source) sent.append(source.field, JSON.stringify(source.value));
  else if (file.size) sent.append(file.type.startsWith("video/") ? "video" : "image", file);
  return sent;
}

// Return the text fields by name, without those that are empty.
export function entries() {
  return Object.fromEntries([...new FormData(form)].filter(([, value]) => typeof value === "string" && value));
}

// Set the fields that `values` names. With `others`, all other fields are emptied.
export function enter(values, { others = false } = {}) {
  for (const field of fields) {
    if (!field.name || field.type === "file" || !(others || field.name in values)) continue;
    if (field.type === "checkbox") field.checked = Boolean(values[field.name]);
    else if (field.tagName === "SELECT") field.value = values[field.name] ?? field.options[0].value;
    else field.value = values[field.name] ?? "";
  }
  changed();
}

// Enter what a job was requested with, so that it can be changed.
export function enterJob(job) {
  const { request } = job;
  const values = Object.fromEntries([...CHOICES, ...NUMBERS].map((name) => [name, request[name]]));
  const [field] = ["image", "video"].filter((name) => request[name]);
  enter({
    ...values,
    prompt: request.prompts?.join("\n") ?? request.prompt,
    size: `${request.width}×${request.height}`,
    distilled: request.distilled,
    refine: request.refine,
  }, { others: true });
  if (field) useSource({ field, value: { job_id: request[field].job_id }, label: `The ${field} of that job` });
  else removeInput();
  focusPrompt();
}

// Use a job's video, or one of its frames, as the input of the next request.
export function useSource(chosen, task = fields.task.value) {
  removeInput();
  source = chosen;
  enter({ task });
  showInput();
}

function focusPrompt() {
  fields.prompt.focus();
  fields.prompt.scrollIntoView({ block: "center" });
}

export function startFrom(chosen, job, task) {
  enter({ prompt: job.request.prompts?.at(-1) ?? job.request.prompt, size: "", num_frames: "", num_segments: "", refine: false });
  useSource(chosen, task);
  focusPrompt();
}

function changed() {
  fitTask();
  warnOfWords();
  saveDraft();
}

function fitTask() {
  const isLong = fields.task.value === "long_video";
  $("segments").hidden = fields.num_segments.disabled = !isLong;
  $("prompt-hint").hidden = !isLong;
}

// What was entered survives a reload of the page; inputs do not.

function saveDraft() {
  const entered = [...new FormData(form)].filter(([, value]) => typeof value === "string");
  sessionStorage.setItem(DRAFT, JSON.stringify(entered));
}

function restoreDraft() {
  enter(Object.fromEntries(JSON.parse(sessionStorage.getItem(DRAFT) ?? "[]")));
}

form.addEventListener("input", changed);
$("examples").addEventListener("click", ({ target }) => {
  if (!target.matches(".example")) return;
  enter({ prompt: target.textContent });
  fields.prompt.focus();
});
restoreDraft();

// Inputs: a file that is chosen, dropped or pasted, or a job's video

const chooser = fields.file;

function choose(files) {
  if (!files.length) return;
  chooser.files = files;
  source = null;
  showInput();
}

function removeInput() {
  chooser.value = "";
  source = null;
  showInput();
}

function showInput() {
  const file = source ? null : chooser.files[0];
  URL.revokeObjectURL($("preview").src);
  $("preview").hidden = !file?.type.startsWith("image/");
  if (!$("preview").hidden) $("preview").src = URL.createObjectURL(file);
  $("drop").classList.toggle("chosen", Boolean(file ?? source));
  $("unchoose").hidden = !file && !source;
  $("file-name").textContent = file?.name ?? source?.label ?? "Add an image or a video";
  const size = file && `${Math.ceil(file.size / 1000).toLocaleString()} kB`;
  $("file-hint").textContent = size ?? (source ? "It is used without a download." : "Drop it here, paste it, or choose a file.");
}

$("unchoose").addEventListener("click", () => { removeInput(); chooser.focus(); });
chooser.addEventListener("change", () => { source = null; showInput(); });
$("preview").addEventListener("error", () => { $("preview").hidden = true; }); // a format that browsers do not show
document.addEventListener("paste", (event) => choose(event.clipboardData.files));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files);
  });
}
