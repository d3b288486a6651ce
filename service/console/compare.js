// Compare videos side by side, with one set of controls for all of them.

import { prompt } from "./words.js";

const MAX_VIDEOS = 4;
const MAX_DRIFT_S = 0.05; // less than two frames at 30 frames per second
const OPTIONS = ["seed", "num_inference_steps", "guidance_scale", "distilled", "refine", "quality", "num_frames"];

const $ = (id) => document.getElementById(id);
const dialog = $("comparison");
const chosen = new Map(); // job id → job
let longest = null; // the video that the others follow

export function toggle(job, button) {
  if (chosen.has(job.id)) chosen.delete(job.id);
  else if (chosen.size < MAX_VIDEOS) chosen.set(job.id, job);
  else throw new Error(`at most ${MAX_VIDEOS} videos can be compared`);
  button.setAttribute("aria-pressed", chosen.has(job.id));
  showBar();
}

export function forget(jobId) {
  if (chosen.delete(jobId)) showBar();
}

export function isChosen(jobId) {
  return chosen.has(jobId);
}

function clear() {
  const buttons = [...document.querySelectorAll("[data-action=compare][aria-pressed=true]")];
  for (const button of buttons) button.setAttribute("aria-pressed", false);
  chosen.clear();
  showBar();
  (buttons[0] ?? $("jobs-title")).focus();
}

function showBar() {
  $("compare-bar").hidden = chosen.size === 0;
  $("compare-count").textContent = chosen.size === 1 ? "1 video selected: select another one" : `${chosen.size} videos selected`;
  $("compare-open").disabled = chosen.size < 2;
}

function open() {
  const jobs = [...chosen.values()];
  const differing = OPTIONS.filter((name) => new Set(jobs.map((job) => job.request[name])).size > 1);
  const samePrompt = new Set(jobs.map(prompt)).size === 1;
  $("compared").replaceChildren(...jobs.map((job) => {
    const figure = $("compared-video").content.firstElementChild.cloneNode(true);
    const video = figure.querySelector("video");
    Object.assign(video, { src: job.result.video_url, poster: job.result.thumbnail_url, muted: true });
    video.setAttribute("aria-label", prompt(job));
    const options = differing.map((name) => `${name.replaceAll("_", " ")} ${job.request[name]}`);
    figure.querySelector("figcaption").textContent = [...(samePrompt ? [] : [prompt(job)]), ...options].join(" · ");
    return figure;
  }));
  $("compared-prompt").textContent = samePrompt ? prompt(jobs[0]) : "";
  const duration = (job) => job.result.duration_s;
  longest = videos()[jobs.indexOf(jobs.reduce((a, b) => (duration(b) > duration(a) ? b : a)))];
  $("compare-time").max = Math.max(...jobs.map(duration));
  dialog.showModal();
  seek(0);
  play();
}

function videos() {
  return [...$("compared").querySelectorAll("video")];
}

function play() {
  if (longest.ended) seek(0);
  for (const video of videos()) video.play().catch(() => {}); // a pause that follows at once cancels it
  $("compare-play").textContent = "Pause";
  requestAnimationFrame(follow);
}

function pause() {
  for (const video of videos()) video.pause();
  $("compare-play").textContent = "Play";
}

function seek(time_s) {
  for (const video of videos()) video.currentTime = time_s;
  $("compare-time").value = time_s;
}

// Keep all videos at the time of the longest. Those that are shorter stay at their end.
function follow() {
  if (!dialog.open) return;
  for (const video of videos())
    if (!video.ended && Math.abs(video.currentTime - longest.currentTime) > MAX_DRIFT_S) video.currentTime = longest.currentTime;
  $("compare-time").value = longest.currentTime;
  if (longest.ended) { seek(0); play(); } else if (!longest.paused) requestAnimationFrame(follow);
}

$("compare-open").addEventListener("click", open);
$("compare-clear").addEventListener("click", clear);
$("compare-play").addEventListener("click", () => (longest.paused ? play() : pause()));
$("compare-time").addEventListener("input", ({ target }) => { pause(); seek(Number(target.value)); });
$("compare-close").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => $("compared").replaceChildren()); // stops the downloads
