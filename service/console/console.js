// The page talks to the same API as everybody else: it orders, lists, watches, cancels and plays.

import { curl } from "./curl.js";
import * as session from "./session.js";
import { ago, kind, news, phase, prompt } from "./words.js";

const ENDED = new Set(["succeeded", "failed", "cancelled"]);
const REFRESH_MS = 3000;
const PAGE = 20;
const MOST_WATCHED = 4; // browsers open about six connections to a host
const SURE_MS = 3000; // so long "Delete" asks whether you are sure

const $ = (id) => document.getElementById(id);
const form = $("order");
const watched = new Map(); // job id → EventSource
let shown = PAGE;
let signedIn = null; // in whose name the page asks, and what it may do

// Talking to the API

async function api(path, options) {
  const response = await fetch(path, options);
  if (response.status === 401) lock();
  const body = response.headers.get("Content-Type")?.includes("json") ? await response.json() : null;
  if (!response.ok) throw new Error(body?.error?.message ?? `the service answered ${response.status}`);
  return body;
}

async function refresh() {
  try {
    const page = await api(`/jobs?limit=${Math.min(shown, 100)}`);
    const present = new Set(page.jobs.map((job) => job.id));
    for (const card of [...$("jobs").children]) if (!present.has(card.dataset.id)) card.remove();
    page.jobs.forEach(show);
    page.jobs.filter((job) => job.status === "running").forEach(watch);
    $("locked").hidden = true;
    $("empty").hidden = page.jobs.length > 0;
    $("more").hidden = !page.next || shown >= 100;
    const ready = (await fetch("/readyz")).ok;
    health(ready, ready ? "ready" : "no worker is ready; orders wait");
    if (!page.jobs.length && !$("examples").children.length) await offer();
  } catch (error) {
    health(false, error instanceof TypeError ? "the service cannot be reached" : error.message);
  }
}

async function offer() {
  const answer = await fetch("/capability");
  if (!answer.ok) return; // no worker has come yet
  const { limits } = await answer.json();
  $("examples").replaceChildren(...limits.example_prompts.map((text) => {
    const item = $("example").content.firstElementChild.cloneNode(true);
    item.firstElementChild.textContent = text;
    return item;
  }));
}

// The key

function lock() {
  askForKey();
  $("locked").hidden = false;
  $("empty").hidden = true;
  throw new Error("an API key is needed");
}

function askForKey(asked = true) {
  $("key").hidden = !asked;
  $("keys").setAttribute("aria-expanded", asked);
}

$("keys").addEventListener("click", () => {
  askForKey($("key").hidden);
  if (!$("key").hidden) $("key").elements.key.focus();
});

$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").elements.key.value.trim();
  $("key").reset();
  tryTo($("key").querySelector("button"), async () => {
    complain("", "key-problem");
    await (key ? session.signIn(key) : session.signOut());
    $("jobs").replaceChildren();
    askForKey(false);
    await greet();
    await refresh();
  }, "key-problem");
});

async function greet() {
  signedIn = await session.current();
  const high = form.elements.priority.querySelector("[value=high]");
  high.disabled = signedIn?.may_order_high === false;
  high.textContent = high.disabled ? "high: not with this key" : "high";
  if (high.disabled && high.selected) form.elements.priority.value = "normal";
}

function health(good, text) {
  $("health").textContent = text;
  $("health").className = good ? "good" : "bad";
}

function watch(job) {
  if (watched.has(job.id) || watched.size >= MOST_WATCHED) return;
  const source = new EventSource(`/jobs/${job.id}/events`);
  const close = () => { source.close(); watched.delete(job.id); };
  for (const kind of ["status", "progress"]) source.addEventListener(kind, (event) => show(JSON.parse(event.data)));
  source.addEventListener("done", (event) => { close(); show(JSON.parse(event.data)); });
  source.onerror = close; // the next refresh begins anew
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
    act(card, job);
  }
  if (card.dataset.status && card.dataset.status !== job.status) $("news").textContent = news(job);
  card.dataset.status = job.status;
  fill(card, job);
}

function fill(card, job) {
  const part = (name) => card.querySelector(name);
  part(".status").textContent = job.status;
  part(".task").textContent = kind(job);
  part("time").dateTime = job.created_at;
  part("time").title = new Date(job.created_at).toLocaleString();
  part("time").textContent = ago(job.created_at);
  part(".prompt").textContent = prompt(job);
  part(".going").hidden = ENDED.has(job.status);
  part("progress").value = job.progress?.fraction ?? 0;
  part(".phase").textContent = phase(job);
  part(".error").hidden = !job.error;
  part(".error").textContent = job.error?.message ?? "";
  part(".cancel").hidden = ENDED.has(job.status);
  part(".delete").hidden = !ENDED.has(job.status);
  film(part("video"), part(".download"), job.result);
  part("video").setAttribute("aria-label", prompt(job));
}

function film(video, link, result) {
  video.hidden = link.hidden = !result;
  if (!result || video.getAttribute("src") === result.video_url) return;
  [video.width, video.height] = [result.width, result.height]; // so that nothing moves when it is loaded
  video.src = link.href = result.video_url;
  video.poster = result.thumbnail_url;
  link.download = "";
}

function act(card, job) {
  const on = (name, action) => card.querySelector(name).addEventListener("click", (event) => tryTo(event.target, action));
  on(".cancel", async () => show(await api(`/jobs/${job.id}/cancel`, { method: "POST" })));
  on(".delete", async (button) => {
    if (!isSure(button)) return;
    await api(`/jobs/${job.id}`, { method: "DELETE" });
    card.remove();
    refresh();
  });
  on(".curl", async () => copy(card, curl(job, location.origin, Boolean(signedIn?.owner))));
}

async function tryTo(button, action, place = "problem") {
  button.disabled = true;
  try { await action(button); } catch (error) { complain(error.message, place); } finally { button.disabled = false; }
}

function isSure(button) {
  if (button.dataset.asked) return true;
  button.dataset.asked = "yes";
  button.textContent = "Delete for good?";
  setTimeout(() => { delete button.dataset.asked; button.textContent = "Delete"; }, SURE_MS);
  return false;
}

async function copy(card, text) {
  await navigator.clipboard.writeText(text);
  const button = card.querySelector(".curl");
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy as curl"; }, 1500);
}

function complain(message, place = "problem") {
  $(place).textContent = message;
  $(place).hidden = !message;
}

// Ordering

function ordered() {
  const body = new FormData();
  const given = new FormData(form);
  const [size, file, text] = ["size", "file", "prompt"].map((name) => given.get(name));
  const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
  const segmented = given.get("task") === "long_video" && lines.length > 1;
  for (const line of segmented ? lines : [text]) body.append(segmented ? "prompts" : "prompt", line);
  for (const name of ["task", "num_frames", "num_segments", "num_inference_steps", "guidance_scale", "quality", "seed", "priority"])
    if (given.get(name)) body.append(name, given.get(name));
  for (const name of ["distilled", "refine"]) if (given.has(name)) body.append(name, "true");
  const [width, height] = size.split(/\s*[x×]\s*/);
  if (height) { body.append("width", width); body.append("height", height); } else if (size) body.append("resolution", size);
  if (file.size) body.append(file.type.startsWith("video/") ? "video" : "image", file);
  return body;
}

$("examples").addEventListener("click", ({ target }) => {
  if (!target.matches(".example")) return;
  form.elements.prompt.value = target.textContent;
  form.elements.prompt.focus();
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  complain("");
  tryTo(form.querySelector("button.main"), async () => {
    show(await api("/generate", { method: "POST", body: ordered() }));
    $("empty").hidden = true;
  });
});

const task = form.elements.task;
const segments = form.elements.num_segments;

function fitTask() {
  $("segments").hidden = segments.disabled = task.value !== "long_video";
  $("prompt-hint").hidden = segments.disabled;
}

task.addEventListener("change", fitTask);
fitTask();

// Files by drag and drop, by paste, or chosen

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
  $("file-name").textContent = file?.name ?? "Add an image or a clip";
  $("file-hint").textContent = file ? `${Math.ceil(file.size / 1000).toLocaleString()} kB` : "Drop it here, paste it, or choose a file.";
}

$("unchoose").addEventListener("click", () => { chooser.value = ""; preview(); chooser.focus(); });

chooser.addEventListener("change", preview);
document.addEventListener("paste", (event) => choose(event.clipboardData.files));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files);
  });
}

// Living

$("more").addEventListener("click", () => { shown += PAGE; refresh(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
setInterval(() => { if (!document.hidden) refresh(); }, REFRESH_MS);
session.forgetKeys();
greet().catch(() => {}).finally(refresh); // where the service cannot be reached, refresh says so
