// List the videos of one request, a batch, and cancel them together.

import { post } from "./api.js";
import * as list from "./list.js";

const $ = (id) => document.getElementById(id);
const field = $("filter").elements.batch;

// List the jobs of a batch, and no others.
export async function open(batchId) {
  $("filter").reset();
  field.value = batchId;
  await list.reload();
  $("leave-batch").focus();
}

export async function cancel() {
  const { jobs } = await post(`/batches/${field.value}/cancel`);
  for (const job of jobs) if (list.find(job.id)) list.show(job);
  $("leave-batch").focus(); // the other button disappears
}

$("leave-batch").addEventListener("click", async () => {
  field.value = "";
  await list.reload();
  $("jobs-title").focus();
});
