// The console uses the same API as any other client: it requests, lists, watches, cancels and plays videos.

import { curl } from "./curl.js";
import * as session from "./session.js";
import { ago, announcement, prompt, state, summary } from "./words.js";

const ENDED = new Set(["succeeded", "failed", "cancelled"]);
const REFRESH_MS = 3000;
const PAGE_SIZE = 20;
const MAX_WATCHED = 4; // browsers open only about six connections to a host
const CONFIRM_MS = 3000; // how long "Delete" asks for confirmation

const $ = (id) => document.getElementById(id);
const form = $("order");
const watched = new Map(); // job id → EventSource
let numShown = PAGE_SIZE;
let signedIn = null; // the session: its owner and rights
let limits = null; // of the checkpoint; null until a worker has registered

// Requests to the API

async function api(path, options) {
  const response = await fetch(path, options);
  if (response.status === 401) requireKey();
  const body = response.headers.get("Content-Type")?.includes("json") ? await response.json() : null;
  if (!response.ok) throw new Error(body?.error?.message ?? `the service answered ${response.status}`);
  return body;
}

async function refresh() {
  try {
    const page = await api(`/jobs?limit=${Math.min(numShown, 100)}`);
    const present = new Set(page.jobs.map((job) => job.id));
    for (const card of [...$("jobs").children]) if (!present.has(card.dataset.id)) card.remove();
    page.jobs.forEach(show);
    page.jobs.filter((job) => job.status === "running").forEach(watch);
    $("locked").hidden = true;
    $("empty").hidden = page.jobs.length > 0;
    $("more").hidden = !page.next || numShown >= 100;
    const ready = (await fetch("/readyz?workers=1")).ok;
    health(ready, ready ? "ready" : "no worker is ready; new jobs wait");
    if (!limits) await loadLimits();
  } catch (error) {
    health(false, error instanceof TypeError ? "the service cannot be reached" : error.message);
  }
}

async function loadLimits() {
  const answer = await fetch("/capability");
  if (!answer.ok) return; // no worker has registered yet
  ({ limits } = await answer.json());
  showExamples();
  showSizes();
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
  form.elements.size.pattern = [...escaped, "\\d+\\s*[x×]\\s*\\d+"].join("|");
  form.elements.size.title = `${names.join(", ")}, or width × height`;
  form.elements.num_frames.max = limits.max_num_frames;
}

// The API key

function requireKey() {
  showKeyForm();
  $("locked").hidden = false;
  $("empty").hidden = true;
  throw new Error("an API key is required");
}

function showKeyForm(visible = true) {
  $("key").hidden = !visible;
  $("keys").setAttribute("aria-expanded", visible);
}

$("keys").addEventListener("click", () => {
  showKeyForm($("key").hidden);
  if (!$("key").hidden) $("key").elements.key.focus();
});

$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").elements.key.value.trim();
  $("key").reset();
  run($("key").querySelector("button"), async () => {
    showProblem("", "key-problem");
    await (key ? session.signIn(key) : session.signOut());
    $("jobs").replaceChildren();
    showKeyForm(false);
    await loadSession();
    await refresh();
  }, "key-problem");
});

async function loadSession() {
  signedIn = await session.current();
  const high = form.elements.priority.querySelector("[value=high]");
  high.disabled = signedIn?.may_order_high === false;
  high.textContent = high.disabled ? "high: not allowed for this key" : "high";
  if (high.disabled && high.selected) form.elements.priority.value = "normal";
}

function health(good, text) {
  $("health").textContent = text;
  $("health").className = good ? "good" : "bad";
}

function watch(job) {
  if (watched.has(job.id) || watched.size >= MAX_WATCHED) return;
  const source = new EventSource(`/jobs/${job.id}/events`);
  const close = () => { source.close(); watched.delete(job.id); };
  for (const kind of ["status", "progress"]) source.addEventListener(kind, (event) => show(JSON.parse(event.data)));
  source.addEventListener("done", (event) => { close(); show(JSON.parse(event.data)); });
  source.onerror = close; // the next refresh opens it again
  watched.set(job.id, source);
}

// Showing jobs

function show(job) {
  let card = $("jobs").querySelector(`[data-id="${job.id}"]`);
  if (!card) {
    card = $("job").content.firstElementChild.cloneNode(true);
    card.dataset.id = job.id;
    const newer = [...$("jobs").children].findLast((other) => other.dataset.createdAt > job.created_at);
    card.dataset.createdAt = job.created_at;
    newer ? newer.after(card) : $("jobs").prepend(card);
    addActions(card, job);
  }
  if (card.dataset.status && card.dataset.status !== job.status) $("news").textContent = announcement(job);
  card.dataset.status = job.status;
  fill(card, job);
}

function fill(card, job) {
  const part = (name) => card.querySelector(name);
  part(".status").textContent = job.status;
  part(".task").textContent = summary(job);
  part("time").dateTime = job.created_at;
  part("time").title = new Date(job.created_at).toLocaleString();
  part("time").textContent = ago(job.created_at);
  part(".prompt").textContent = prompt(job);
  part(".going").hidden = ENDED.has(job.status);
  part("progress").value = job.progress?.fraction ?? 0;
  part(".phase").textContent = state(job);
  part(".error").hidden = !job.error;
  part(".error").textContent = job.error?.message ?? "";
  part(".cancel").hidden = ENDED.has(job.status);
  part(".delete").hidden = !ENDED.has(job.status);
  setVideo(part("video"), part(".download"), job.result);
  part("video").setAttribute("aria-label", prompt(job));
}

function setVideo(video, link, result) {
  video.hidden = link.hidden = !result;
  if (!result || video.getAttribute("src") === result.video_url) return;
  [video.width, video.height] = [result.width, result.height]; // reserves the space, so that the page does not move when it is loaded
  video.src = link.href = result.video_url;
  video.poster = result.thumbnail_url;
  link.download = "";
}

function addActions(card, job) {
  const on = (name, action) => card.querySelector(name).addEventListener("click", (event) => run(event.target, action));
  on(".cancel", async () => show(await api(`/jobs/${job.id}/cancel`, { method: "POST" })));
  on(".delete", async (button) => {
    if (!isConfirmed(button)) return;
    await api(`/jobs/${job.id}`, { method: "DELETE" });
    card.remove();
    refresh();
  });
  on(".curl", async () => copy(card, curl(job, location.origin, Boolean(signedIn?.owner))));
}

async function run(button, action, place = "problem") {
  button.disabled = true;
  try { await action(button); } catch (error) { showProblem(error.message, place); } finally { button.disabled = false; }
}

function isConfirmed(button) {
  if (button.dataset.confirming) return true;
  button.dataset.confirming = "yes";
  button.textContent = "Delete permanently?";
  setTimeout(() => { delete button.dataset.confirming; button.textContent = "Delete"; }, CONFIRM_MS);
  return false;
}

async function copy(card, text) {
  await navigator.clipboard.writeText(text);
  const button = card.querySelector(".curl");
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy as curl"; }, 1500);
}

function showProblem(message, place = "problem") {
  $(place).textContent = message;
  $(place).hidden = !message;
}

// Requesting a video

function requestBody() {
  const body = new FormData();
  const entered = new FormData(form);
  const [size, file, text] = ["size", "file", "prompt"].map((name) => entered.get(name));
  const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
  const segmented = entered.get("task") === "long_video" && lines.length > 1;
  for (const line of segmented ? lines : [text]) body.append(segmented ? "prompts" : "prompt", line);
  for (const name of ["task", "num_frames", "num_segments", "num_inference_steps", "guidance_scale", "quality", "seed", "priority"])
    if (entered.get(name)) body.append(name, entered.get(name));
  for (const name of ["distilled", "refine"]) if (entered.has(name)) body.append(name, "true");
  const [width, height] = size.split(/\s*[x×]\s*/);
  if (height) { body.append("width", width); body.append("height", height); } else if (size) body.append("resolution", size);
  if (file.size) body.append(file.type.startsWith("video/") ? "video" : "image", file);
  return body;
}

$("examples").addEventListener("click", ({ target }) => {
  if (!target.matches(".example")) return;
  form.elements.prompt.value = target.textContent;
  form.elements.prompt.dispatchEvent(new Event("input", { bubbles: true }));
  form.elements.prompt.focus();
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  showProblem("");
  run(form.querySelector("button.main"), async () => {
    show(await api("/generate", { method: "POST", body: requestBody() }));
    $("empty").hidden = true;
  });
});

// An error of an earlier attempt would stand beside the browser's own, or beside what corrects it.
for (const kind of ["input", "invalid"]) form.addEventListener(kind, () => showProblem(""), { capture: true });

const task = form.elements.task;
const segments = form.elements.num_segments;

function fitTask() {
  $("segments").hidden = segments.disabled = task.value !== "long_video";
  $("prompt-hint").hidden = segments.disabled;
}

task.addEventListener("change", fitTask);

// What was entered survives a reload of the page; files do not.

const DRAFT = "draft";

function saveDraft() {
  const entered = [...new FormData(form)].filter(([, value]) => typeof value === "string");
  sessionStorage.setItem(DRAFT, JSON.stringify(entered));
}

function restoreDraft() {
  for (const [name, value] of JSON.parse(sessionStorage.getItem(DRAFT) ?? "[]")) {
    const field = form.elements[name];
    if (field?.type === "checkbox") field.checked = true;
    else if (field) field.value = value;
  }
}

form.addEventListener("input", saveDraft);
restoreDraft();
fitTask();

// Input files: chosen, dropped or pasted

const chooser = form.elements.file;

function choose(files) {
  if (files.length) { chooser.files = files; preview(); }
}

function preview() {
  const file = chooser.files[0];
  URL.revokeObjectURL($("preview").src);
  $("preview").hidden = !file?.type.startsWith("image/");
  if (!$("preview").hidden) $("preview").src = URL.createObjectURL(file);
  $("drop").classList.toggle("chosen", Boolean(file));
  $("unchoose").hidden = !file;
  $("file-name").textContent = file?.name ?? "Add an image or a video";
  $("file-hint").textContent = file ? `${Math.ceil(file.size / 1000).toLocaleString()} kB` : "Drop it here, paste it, or choose a file.";
}

$("unchoose").addEventListener("click", () => { chooser.value = ""; preview(); chooser.focus(); });

chooser.addEventListener("change", preview);
$("preview").addEventListener("error", () => { $("preview").hidden = true; }); // a format that browsers do not show
document.addEventListener("paste", (event) => choose(event.clipboardData.files));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files);
  });
}

// Keep the page up to date

$("more").addEventListener("click", () => { numShown += PAGE_SIZE; refresh(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
setInterval(() => { if (!document.hidden) refresh(); }, REFRESH_MS);
session.forgetKeys();
loadSession().catch(() => {}).finally(refresh); // refresh shows that the service cannot be reached
