// The console uses the same API as any other client. This module connects the parts of the page.

import { call, post } from "./api.js";
import * as card from "./card.js";
import * as compare from "./compare.js";
import { curl } from "./curl.js";
import * as library from "./library.js";
import * as list from "./list.js";
import * as request from "./request.js";
import * as session from "./session.js";

const REFRESH_MS = 10000; // jobs on the page that have not ended are followed without refreshing
const GRID = "grid";

const $ = (id) => document.getElementById(id);
const form = $("order");
let signedIn = null; // the session: its owner and rights
let isCapabilityKnown = false;

async function refresh() {
  try {
    await list.refresh();
    $("locked").hidden = true;
    const ready = (await fetch("/readyz?workers=1")).ok;
    health(ready, ready ? "ready" : "no worker is ready; new jobs wait");
    if (!isCapabilityKnown) await loadCapability();
  } catch (error) { showOutage(error); }
}

function showOutage(error) {
  if (error.status === 401) {
    showKeyForm();
    $("locked").hidden = false;
    $("empty").hidden = true;
  }
  const message = error.status === 401 ? "an API key is required" : error.message;
  health(false, error instanceof TypeError ? "the service cannot be reached" : message);
}

async function loadCapability() {
  const answer = await fetch("/capability");
  if (!answer.ok) return; // no worker has registered yet
  request.showCapability(await answer.json());
  isCapabilityKnown = true;
}

function health(good, text) {
  $("health").textContent = text;
  $("health").className = good ? "good" : "bad";
}

async function run(button, action, place = "problem") {
  button.disabled = true;
  try { await action(); } catch (error) { showProblem(error.message, place); } finally { button.disabled = false; }
}

function showProblem(message, place = "problem") {
  $(place).textContent = message;
  $(place).hidden = !message;
}

// The API key

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
    showKeyForm(false);
    await loadSession();
    await list.reload();
    await refresh();
  }, "key-problem");
});

async function loadSession() {
  signedIn = await session.current();
  library.open(signedIn?.owner);
  const high = form.elements.priority.querySelector("[value=high]");
  high.disabled = signedIn?.may_order_high === false;
  high.textContent = high.disabled ? "high: not allowed for this key" : "high";
  if (high.disabled && high.selected) form.elements.priority.value = "normal";
}

// Requesting a video

form.addEventListener("submit", (event) => {
  event.preventDefault();
  showProblem("");
  run(form.querySelector("button.main"), async () => {
    const job = await post("/generate", request.body());
    list.show(job);
    list.watch();
    if (job.batch) await refresh(); // shows the other videos of the request
    library.rememberPrompt(form.elements.prompt.value);
  });
});

// An error of an earlier attempt would stand beside the browser's own, or beside what corrects it.
for (const kind of ["input", "invalid"]) form.addEventListener(kind, () => showProblem(""), { capture: true });

// What the buttons of a job do

const ACTIONS = {
  cancel: async (job) => list.show(await post(`/jobs/${job.id}/cancel`)),
  repeat: async (job) => { list.show(await post(`/jobs/${job.id}/retry`, { seed: null })); list.watch(); },
  edit: (job) => request.enterJob(job),
  continue: (job) => request.startFrom(
    { field: "video", value: { job: job.id }, label: "The end of that video" }, job, "video_continuation"),
  refine: (job) => request.startFrom({ field: "video", value: { job: job.id }, label: "That video" }, job, "refine"),
  frame: (job, { frame }) => request.startFrom(
    { field: "image", value: { job: job.id, frame }, label: `Frame ${frame} of that video` }, job, "image_to_video"),
  compare: (job, { button }) => compare.toggle(job, button),
  curl: (job, { button }) => card.copy(button, curl(job, location.origin, Boolean(signedIn?.owner))),
  delete: async (job, { button, shown }) => {
    if (!card.isConfirmed(button)) return;
    await call(`/jobs/${job.id}`, { method: "DELETE" });
    compare.forget(job.id);
    shown.remove();
    await refresh();
  },
};

function act(name, shown, button) {
  const frame = name === "frame" ? card.shownFrame(shown) : null;
  run(button, () => ACTIONS[name](shown.job, { button, shown, frame }));
}

// A grid of videos, or a list

function showAsGrid(isGrid) {
  $("jobs").classList.toggle(GRID, isGrid);
  $("grid").setAttribute("aria-pressed", isGrid);
  localStorage.setItem(GRID, isGrid ? "yes" : "");
}

$("grid").addEventListener("click", () => showAsGrid(!$("jobs").classList.contains(GRID)));
showAsGrid(Boolean(localStorage.getItem(GRID)));

// Keep the page up to date

list.start(act, showOutage);
library.start(request.entries, (values) => { request.enter(values, { others: !("prompt" in values) }); form.elements.prompt.focus(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
setInterval(() => { if (!document.hidden) refresh(); }, REFRESH_MS);
session.forgetKeys();
loadSession().catch(() => {}).finally(refresh); // refresh shows that the service cannot be reached
