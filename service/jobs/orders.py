"""Turn a checked request and its input files into an order, or refuse it."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping

from jobs.capability import Capability
from jobs.errors import InvalidRequest, QualityNotAllowed
from jobs.order import Order
from model.spec.combinations import possible_plan
from model.spec.errors import InvalidParams
from model.spec.geometry import Size
from model.spec.limits import Limits
from model.spec.memory import format_bytes
from model.spec.plan import Plan
from model.spec.prompt import unknown_words
from model.spec.resolve import Inputs, resolve
from service.inputs.reader import CheckedInput
from service.jobs.bodies import GenerateRequest, RequestOptions

_LARGE_STRETCH = 1.2  # of one side against the other; nothing is cropped
_RANDOM_SEEDS = 1 << 53  # every JSON reader keeps such a number exact


def check_prompts(request: GenerateRequest, limits: Limits) -> None:
    """Raise InvalidRequest if there is no prompt, or if a text is too long. Needs no input files."""
    if request.prompt is None and request.prompts is None:
        raise _invalid("prompt", "is required unless prompts is given")
    _check_one_kind_of_prompt(request)
    field = "prompts" if request.prompt is None else "prompt"
    texts = [(field, prompt) for prompt in request.all_prompts()]
    for name, text in [*texts, ("negative_prompt", request.negative_prompt or "")]:
        if len(text) > limits.max_prompt_characters:
            raise _invalid(name, f"must have at most {limits.max_prompt_characters} characters")


def check_contradictions(options: RequestOptions) -> None:
    """Raise InvalidRequest if no request could have these options, whatever its files and the checkpoint."""
    _check_one_kind_of_prompt(options)
    try:
        plan = possible_plan(options, len(options.prompts or [""]))
    except InvalidParams as error:
        raise _invalid(error.field, error.rule) from error
    _check_guidance(options, plan)


def check_quality(request: GenerateRequest, step_cache: float | None) -> None:
    """Raise QualityNotAllowed for `balanced` unless the operator chose a threshold for it."""
    if request.quality == "balanced" and step_cache is None:
        raise QualityNotAllowed("quality: this service makes exact videos only", "quality")


def make_order(
    request: GenerateRequest,
    files: Mapping[str, CheckedInput],
    capability: Capability,
    step_cache: float | None,
) -> Order:
    """Resolve a request and its files, by field, into an order for groups with this capability.

    Raises InvalidRequest, which names the field, if the request breaks a limit of the checkpoint.
    """
    limits, sizes = capability.model_limits, {field: file.clip for field, file in files.items()}
    image = sizes.get("image")
    inputs = Inputs(
        num_prompts=len(request.all_prompts()),
        image=image and image.size,
        video=sizes.get("video"),
        condition_video=sizes.get("condition_video"),
    )
    try:
        plan = resolve(request, inputs, limits, step_cache=step_cache)
    except InvalidParams as error:
        raise _invalid(error.field, error.rule) from error
    _check_determined(request, plan)
    negative_prompt = _resolve_negative_prompt(request, plan, limits)
    _check_capability(plan, capability)
    _check_memory(plan, capability)
    return Order(
        plan=plan,
        prompts=request.all_prompts(),
        negative_prompt=negative_prompt,
        seed=secrets.randbelow(_RANDOM_SEEDS) if request.seed is None else request.seed,
        **{field: file.file for field, file in files.items()},
    )


def input_warnings(order: Order, files: Mapping[str, CheckedInput]) -> tuple[str, ...]:
    """Return what is special about the inputs of an order: what is lost of them, and what is stretched."""
    warnings = [f"{field}: {note}" for field, file in files.items() for note in file.notes]
    plan = order.plan
    target = plan.output_size if plan.task == "refine" else Size(plan.height, plan.width)
    for field, file in files.items():
        given = file.clip.size
        stretch = (target.width / target.height) / (given.width / given.height)
        if max(stretch, 1 / stretch) > _LARGE_STRETCH:
            sizes = f"from {given.width}×{given.height} to {target.width}×{target.height}"
            warnings.append(f"{field}: is stretched {sizes}")
    return tuple(warnings)


def prompt_warnings(order: Order, known_words: Collection[str]) -> tuple[str, ...]:
    """Return which words that the model would see a checkpoint with these words does not know."""
    unknown = unknown_words(order.prompts, known_words)
    noun = "word" if len(unknown) == 1 else "words"
    return (f"prompt: the model does not know the {noun} {', '.join(unknown)}",) if unknown else ()


def _check_capability(plan: Plan, capability: Capability) -> None:
    """Raise InvalidRequest if the checkpoint lacks the weights that the plan needs."""
    if plan.task not in capability.tasks:
        raise _invalid("task", f"this checkpoint makes {', '.join(capability.tasks)}")
    if plan.distilled and "cfg_step_lora" not in capability.loras:
        raise _invalid("distilled", "this checkpoint has no cfg_step_lora")
    if plan.refinement and "refinement_lora" not in capability.loras:
        field = "task" if plan.task == "refine" else "refine"
        raise _invalid(field, "this checkpoint has no refinement_lora")


def _check_memory(plan: Plan, capability: Capability) -> None:
    """Raise InvalidRequest if the GPUs have too little memory for the plan. Name what would fit."""
    budget = capability.memory
    if budget is None or budget.fits(plan):
        return
    needed, available = format_bytes(budget.needed(plan)), format_bytes(budget.available_bytes)
    rule = f"needs {needed} of memory on each GPU, but {available} can be used"
    if plan.task == "refine":
        raise _invalid("video", f"{rule}; a smaller or shorter clip may fit")
    if num_frames := budget.longest_that_fits(plan):
        raise _invalid("num_frames", f"{rule}; {num_frames} frames of this size fit")
    raise _invalid("refine" if plan.refinement else "height", f"{rule}; no length of this size fits")


def _check_determined(request: GenerateRequest, plan: Plan) -> None:
    """Raise InvalidRequest if a field that a job only shows has another value than the job would show."""
    if request.fps not in {None, plan.fps}:
        raise _invalid("fps", f"is {plan.fps} with this model")
    refinement = plan.refinement and plan.refinement.model_dump()
    if request.refinement is not None and request.refinement != refinement:
        raise _invalid("refinement", "does not follow from the other options; leave it out")


def _resolve_negative_prompt(request: GenerateRequest, plan: Plan, limits: Limits) -> str | None:
    _check_guidance(request, plan)
    if plan.guidance_scale > 1.0 and request.negative_prompt is None:
        return limits.negative_prompt
    return request.negative_prompt


def _check_one_kind_of_prompt(options: RequestOptions) -> None:
    if options.prompt is not None and options.prompts is not None:
        raise _invalid("prompts", "cannot be combined with prompt")


def _check_guidance(options: RequestOptions, plan: Plan) -> None:
    if options.negative_prompt is not None and plan.guidance_scale <= 1.0:
        raise _invalid("negative_prompt", "needs a guidance_scale above 1")


def _invalid(field: str, rule: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {rule}", field)
