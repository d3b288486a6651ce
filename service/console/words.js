// What the page says of a job, in words.

const MINUTE_S = 60;
const HOUR_S = 3600;
const DAY_S = 86400;

const SAID = {
  queued: "waits in the queue", running: "has begun", uploading: "is being stored",
  succeeded: "is finished", failed: "has failed", cancelled: "was cancelled",
};

export function lasting(seconds) {
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

export function kind(job) {
  const { width, height, fps } = job.result ?? job.request;
  return `${job.task.replaceAll("_", " ")} · ${width}×${height} · ${(frames(job) / fps).toFixed(1)} s`;
}

export function prompt(job) {
  return job.request.prompt ?? job.request.prompts.join("\n");
}

export function phase(job) {
  const at = job.progress;
  if (job.status === "queued") return [
    job.queue_position ? `number ${job.queue_position} in the queue` : "queued",
    at?.eta_s != null && `done in about ${lasting(at.eta_s)}`,
  ].filter(Boolean).join(" · ");
  if (!at) return job.status;
  return [
    at.phase,
    at.num_steps && `step ${at.step} of ${at.num_steps}`,
    at.num_segments > 1 && `segment ${at.segment + 1} of ${at.num_segments}`,
    at.eta_s != null && `${lasting(at.eta_s)} left`,
  ].filter(Boolean).join(" · ");
}

// For those who do not see the page: what happened, once, and not every step.
export function news(job) {
  return `“${prompt(job).slice(0, 60)}” ${SAID[job.status]}`;
}

function frames({ result, request }) {
  if (result) return result.num_frames;
  const { num_frames, num_segments, num_condition_frames } = request;
  return num_frames + (num_segments - 1) * (num_frames - num_condition_frames);
}
