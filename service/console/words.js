// Describe a job in words.

const MINUTE_S = 60;
const HOUR_S = 3600;
const DAY_S = 86400;
const MAX_START = 60; // characters of a prompt that name a job

export const ANNOUNCEMENTS = {
  queued: "is in the queue", running: "has started", uploading: "is being uploaded",
  succeeded: "is finished", failed: "has failed", cancelled: "was cancelled",
};

const PHASES = {
  load: "loading", encode: "encoding the prompt", denoise: "denoising", refine: "refining",
  decode: "decoding", upload: "uploading",
};

export function duration(seconds) {
  const whole = Math.ceil(seconds);
  if (whole < 100) return `${whole} s`;
  if (whole < 100 * MINUTE_S) return `${Math.round(whole / MINUTE_S)} min`;
  return `${Math.round(whole / HOUR_S)} h`;
}

export function ago(time, now = Date.now()) {
  const seconds = Math.max(0, (now - Date.parse(time)) / 1000);
  if (seconds < MINUTE_S) return "just now";
  if (seconds < HOUR_S) return `${Math.floor(seconds / MINUTE_S)} min ago`;
  if (seconds < DAY_S) return `${Math.floor(seconds / HOUR_S)} h ago`;
  return new Date(time).toLocaleDateString();
}

export function summary(job) {
  const { width, height, fps } = job.result ?? job.request;
  return `${job.task.replaceAll("_", " ")} · ${width}×${height} · ${(frames(job) / fps).toFixed(1)} s`;
}

export function prompt(job) {
  return job.request.prompt ?? job.request.prompts.join("\n");
}

export function state(job) {
  const { progress } = job;
  if (job.status === "queued") return [
    job.queue_position ? `position ${job.queue_position} in the queue` : "in the queue",
    progress?.eta_s != null && `done in about ${duration(progress.eta_s)}`,
  ].filter(Boolean).join(" · ");
  if (!progress) return job.status;
  return [
    PHASES[progress.phase] ?? progress.phase,
    progress.num_steps && `step ${progress.step} of ${progress.num_steps}`,
    progress.num_segments > 1 && `segment ${progress.segment + 1} of ${progress.num_segments}`,
    progress.eta_s != null && `${duration(progress.eta_s)} left`,
  ].filter(Boolean).join(" · ");
}

// When the video is wanted, or whether it was ready then.
export function deadline({ deadline_at, deadline_met, finished_at }, now = Date.now()) {
  if (!deadline_at) return "";
  if (deadline_met) return "deadline met";
  const seconds = (Date.parse(deadline_at) - now) / 1000;
  if (deadline_met === false || (!finished_at && seconds < 0)) return "deadline missed";
  return finished_at ? "" : `wanted in ${duration(seconds)}`;
}

// Which of the videos of one request this is.
export function numberInBatch({ id, batch }) {
  return batch ? `Video ${batch.job_ids.indexOf(id) + 1} of ${batch.job_ids.length}` : "";
}

// The job whose video this one begins with, continues or refines, and what it took of it; null if there is none.
export function source({ request: { image, video } }) {
  if (image?.source_job_id) return { jobId: image.source_job_id, text: `From frame ${image.source_frame} of a video` };
  return video?.source_job_id ? { jobId: video.source_job_id, text: "From a video" } : null;
}

// What a job costs: as expected until it has ended, then as it was.
export function cost({ cost, finished_at }) {
  const amount = finished_at ? cost?.actual : cost?.predicted;
  if (amount == null) return "";
  return `${finished_at ? "cost" : "costs about"} ${amount.toFixed(2)} ${cost.currency}`;
}

export function queued(job) {
  return `Queued: ${job.batch ? `${job.batch.job_ids.length} videos of ` : ""}${start(job)}.`;
}

// For screen readers: announce each change of status once, and not every step.
export function announcement(job) {
  return `${start(job)} ${ANNOUNCEMENTS[job.status]}`;
}

function start(job) {
  const text = prompt(job);
  return `“${text.length > MAX_START ? `${text.slice(0, MAX_START)}…` : text}”`;
}

// Return the words of a text that a checkpoint with a list of known words does not know.
export function unknownWords(text, knownWords) {
  if (!knownWords.length) return [];
  const known = new Set(knownWords);
  const words = text.toLowerCase().match(/\p{L}+/gu) ?? [];
  return [...new Set(words)].filter((word) => !known.has(word));
}

function frames({ result, request }) {
  if (result) return result.num_frames;
  const { num_frames, num_segments, num_condition_frames } = request;
  return num_frames + (num_segments - 1) * (num_frames - num_condition_frames);
}
