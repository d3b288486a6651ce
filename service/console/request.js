// The form that requests a video.

import { unknownWords } from "./words.js";

const DRAFT = "draft";
const WORDS_DELAY_MS = 600; // a screen reader announces each change
const NUMBERS = [
  "num_frames", "num_segments", "num_inference_steps", "guidance_scale", "seed", "num_videos", "deadline_s", "t_thresh",
  "num_condition_frames",
];
const CHOICES = ["task", "quality", "priority", "model"];
const FIELDS = [...CHOICES, ...NUMBERS, "negative_prompt"];
const TICKS = ["distilled", "refine", "spatial_refine_only"];
const PROMPTS = ["prompt", "prompts"];
const NO_REFINEMENT = { refine: false, t_thresh: "", spatial_refine_only: false, num_condition_frames: "" };
const NEEDED_LORAS = {
  distilled: "cfg_step_lora", refine: "refinement_lora", spatial_refine_only: "refinement_lora", t_thresh: "refinement_lora",
};

const $ = (id) => document.getElementById(id);
const form = $("request");
const fields = form.elements;
let limits = null; // of the checkpoint; null until a worker has registered
let defaultTThresh = null;
let knownWords = []; // none: all are known
let source = null; // { field, value, label }: an input that comes from a job
let extra = {}; // options of a preset or a job for which the form has no field

// What the checkpoint can do

export function showCapability(capability) {
  ({ limits, default_t_thresh: defaultTThresh } = capability);
  showExamples();
  showSizes();
  showModels([...new Set(capability.pools.map((pool) => pool.model))]);
  for (const option of fields.task.options) option.hidden = Boolean(option.value) && !capability.tasks.includes(option.value);
  for (const [name, lora] of Object.entries(NEEDED_LORAS)) {
    const isThere = capability.loras.includes(lora);
    fields[name].closest("label").hidden = fields[name].disabled = !isThere;
  }
  fields.num_inference_steps.max = limits.max_num_inference_steps;
  fields.guidance_scale.max = limits.max_guidance_scale;
  fields.num_segments.max = limits.max_num_segments;
  fields.num_frames.max = limits.max_num_frames;
  fields.num_videos.max = capability.max_num_videos;
  for (const option of fields.quality.options) option.hidden = option.disabled = !capability.qualities.includes(option.value);
  fields.num_inference_steps.placeholder = limits.num_inference_steps;
  fields.negative_prompt.placeholder = limits.negative_prompt;
  fields.guidance_scale.placeholder = limits.guidance_scale;
  fields.num_frames.placeholder = limits.default_num_frames;
  fields.num_condition_frames.placeholder = limits.num_condition_frames;
  fields.t_thresh.placeholder = defaultTThresh;
  knownWords = capability.known_words ?? [];
  $("known-words").hidden = !knownWords.length;
  $("known-words-list").textContent = knownWords.join(", ");
  warnOfWords();
}

function showExamples() {
  $("examples-title").hidden = !limits.example_prompts.length;
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

function showModels(names) {
  const chosen = fields.model.value;
  fields.model.replaceChildren(fields.model.options[0], ...names.map((name) => new Option(name)));
  fields.model.value = names.includes(chosen) ? chosen : "";
  $("models").hidden = names.length < 2;
}

let wordsTimer;
function warnOfWords() {
  clearTimeout(wordsTimer);
  const unknown = unknownWords(fields.prompt.value, knownWords);
  $("unknown-words").hidden = unknown.length === 0;
  if (!unknown.length) return;
  wordsTimer = setTimeout(() => {
    $("unknown-words").textContent = `This checkpoint does not know: ${unknown.join(", ")}`;
  }, $("unknown-words").textContent ? WORDS_DELAY_MS : 0);
}

// What was entered

export function body() {
  const sent = options();
  const [text, file] = [fields.prompt.value, fields.file.files[0]];
  const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
  const segmented = fields.task.value === "long_video" && lines.length > 1;
  for (const line of segmented ? lines : [text]) sent.append(segmented ? "prompts" : "prompt", line);
  if (source) sent.append(source.field, JSON.stringify(source.value));
  else if (file) sent.append(file.type.startsWith("video/") ? "video" : "image", file);
  return sent;
}

// Return what was entered besides the prompt and the input, as fields of a request.
export function options(entered = new FormData(form)) {
  const sent = new FormData();
  const size = entered.get("size") ?? "";
  for (const name of FIELDS) if (entered.get(name)) sent.append(name, entered.get(name));
  for (const name of TICKS) if (entered.has(name)) sent.append(name, "true");
  const [width, height] = size.split(/\s*[x×]\s*/);
  if (height) { sent.append("width", width); sent.append("height", height); } else if (size) sent.append("resolution", size);
  for (const [name, value] of Object.entries(extra)) {
    if (entered.get(name)) continue;
    for (const each of Array.isArray(value) ? value : [value]) {
      sent.append(name, typeof each === "string" ? each : JSON.stringify(each));
    }
  }
  return sent;
}

// Return the same for the entries of this form that an earlier release kept as a preset.
export function optionsOf(entries) {
  const entered = new FormData();
  for (const [name, value] of Object.entries(entries)) entered.append(name, value);
  return options(entered);
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

// Enter the options of a preset. Those without a field are sent with the request. A prompt stays unless there is one.
export function enterOptions({ resolution, height, width, ...others }) {
  const text = others.prompts?.join("\n") ?? others.prompt ?? fields.prompt.value;
  const values = { ...others, prompt: text, size: resolution ?? (height ? `${width}×${height}` : "") };
  extra = Object.fromEntries(Object.entries(others).filter(([name, value]) => !hasField(name, value)));
  enter(values, { others: true });
  showExtra();
  fields.prompt.focus();
}

// Tell whether a field can show this value of an option. An empty field means the default.
function hasField(name, value) {
  if (PROMPTS.includes(name)) return true;
  if (name === "model") return [...fields.model.options].some((option) => option.value === value);
  return name in fields && value !== "";
}

function showExtra() {
  const names = Object.keys(extra).map((name) => name.replaceAll("_", " "));
  $("extra").hidden = !names.length;
  $("extra-names").textContent = `Also sent: ${names.join(", ")}`;
}

$("forget-extra").addEventListener("click", () => {
  extra = {};
  showExtra();
  saveDraft();
  fields.prompt.focus();
});

// Enter what a job was requested with, so that it can be changed.
export function enterJob(job) {
  const { request } = job;
  extra = withoutField(job);
  showExtra();
  const values = Object.fromEntries([...FIELDS, ...TICKS].map((name) => [name, request[name]]));
  if (request.negative_prompt === limits?.negative_prompt) values.negative_prompt = "";
  if (request.t_thresh === defaultTThresh) values.t_thresh = "";
  if ([0, limits?.num_condition_frames].includes(request.num_condition_frames)) values.num_condition_frames = "";
  const [field] = ["image", "video"].filter((name) => request[name]);
  enter({
    ...values,
    prompt: request.prompts?.join("\n") ?? request.prompt,
    size: `${request.width}×${request.height}`,
  }, { others: true });
  if (field) useSource({ field, value: { job_id: request[field].job_id }, label: `The ${field} of that job` });
  else removeInput();
  focusPrompt();
}

// Return what a job was requested with besides the fields of the form, without defaults.
function withoutField({ request, metadata }) {
  const { negative_prompt, condition_video, webhook_url, webhook_events, model } = request;
  const given = {
    negative_prompt: negative_prompt === "" && limits?.negative_prompt ? "" : null, // an empty field means the default
    condition_video: condition_video && { job_id: condition_video.job_id },
    metadata: Object.keys(metadata).length ? metadata : null,
    model: hasField("model", model) ? null : model,
    webhook_url, webhook_events,
  };
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== null));
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
  const prompt = job.request.prompts?.at(-1) ?? job.request.prompt;
  const unused = task === "refine"
    ? { refine: false, guidance_scale: "", distilled: false, negative_prompt: "" }
    : NO_REFINEMENT;
  enter({ prompt, size: "", num_frames: "", num_segments: "", ...unused });
  delete extra[task === "refine" ? "negative_prompt" : "condition_video"];
  showExtra();
  useSource(chosen, task);
  focusPrompt();
}

function changed() {
  fitTask();
  showSeed();
  warnOfWords();
  saveDraft();
}

// A seed that was taken over from a job is among the options, out of sight: the same request makes the same video again.
function showSeed() {
  const seed = fields.seed.value;
  $("fixed-seed").hidden = !seed;
  $("fixed-seed-text").textContent = `Seed ${seed}`;
}

$("forget-seed").addEventListener("click", () => {
  enter({ seed: "" });
  fields.prompt.focus();
});

function fitTask() {
  const isLong = fields.task.value === "long_video";
  $("segments").hidden = fields.num_segments.disabled = !isLong;
  $("prompt-hint").hidden = !isLong;
}

// What was entered survives a reload of the page; inputs do not.

function saveDraft() {
  const entered = [...new FormData(form)].filter(([, value]) => typeof value === "string");
  sessionStorage.setItem(DRAFT, JSON.stringify({ entered, extra }));
}

export function forgetDraft() {
  sessionStorage.removeItem(DRAFT);
}

function restoreDraft() {
  const { entered = [], ...draft } = JSON.parse(sessionStorage.getItem(DRAFT) ?? "{}");
  const values = Object.fromEntries(entered);
  if (values.model) fields.model.add(new Option(values.model)); // until the capability says which there are
  extra = draft.extra ?? {};
  enter(values);
  showExtra();
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
