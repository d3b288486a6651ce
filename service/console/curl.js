// Build the curl command that requests the same video again, with the same seed. Input files are named, not
// included; the key is a variable.

const DETERMINED_BY_CLIP = ["height", "width", "num_frames", "num_segments", "num_condition_frames", "guidance_scale"];
const FIELDS = [
  "height", "width", "num_frames", "num_segments", "num_condition_frames", "num_inference_steps",
  "guidance_scale", "negative_prompt", "distilled", "quality", "refine", "seed", "priority", "webhook_url", "webhook_events",
];

export function curl(job, origin, withKey) {
  const fields = requestFields(job);
  const files = ["image", "video", "condition_video"].filter((name) => job.request[name]);
  const parts = files.length ? form(fields, files) : ["-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(fields))}`];
  const key = withKey ? ['-H "Authorization: Bearer $LONGCAT_API_KEY"'] : [];
  return [`curl ${origin}/generate`, ...key, ...parts].join(" \\\n  ");
}

function requestFields(job) {
  const { request } = job;
  const fields = { task: job.task };
  fields[request.prompts ? "prompts" : "prompt"] = request.prompts ?? request.prompt;
  for (const name of FIELDS) if (request[name] && !isDeterminedByClip(name, job)) fields[name] = request[name];
  if (request.negative_prompt === "") fields.negative_prompt = "";
  if (request.refinement) Object.assign(fields, refinement(request.refinement));
  if (Object.keys(job.metadata).length) fields.metadata = job.metadata;
  return fields;
}

function isDeterminedByClip(name, job) {
  return job.task === "refine" && DETERMINED_BY_CLIP.includes(name);
}

function refinement({ t_thresh, spatial_only }) {
  return { t_thresh, ...(spatial_only && { spatial_refine_only: true }) };
}

function form(fields, files) {
  const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  const texts = Object.entries(fields).flatMap(([name, value]) =>
    [name === "prompts" ? value : [value]].flat().map((one) => `--form-string ${quoted(`${name}=${text(one)}`)}`));
  return [...texts, ...files.map((name) => `-F ${name}=@${name}.${name === "image" ? "png" : "mp4"}`)];
}

function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
