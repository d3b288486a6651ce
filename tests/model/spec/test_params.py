"""Every option can be set over HTTP and on both command lines, which derive from its declaration."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args, get_origin

import pytest

from model import options as model_command
from model.spec.arguments import options_of
from model.spec.errors import InvalidParams
from model.spec.params import GenerationParams, SamplingParams, value_type
from service.cli.arguments import options_of_video
from service.cli.arguments import parser as service_parser
from service.jobs.bodies import GenerateRequest
from service.openai.bodies import ExtensionRequest, VideoRequest

OPTIONS = list(GenerationParams.model_fields)
PUBLISHED_SPELLINGS = [  # of `python -m model`, which scripts of users contain
    "--task --negative-prompt --resolution --height --width --num-frames --num-segments",
    "--num-condition-frames --steps --guidance-scale --distilled --refine --no-condition-cache",
    "--no-enhance-hf --t-thresh --spatial-refine-only --seed --quality",
]


def other_value(name: str) -> Any:
    """Return a valid value of an option that is not its default."""
    field = GenerationParams.model_fields[name]
    kind = value_type(field.annotation)
    if kind is bool:
        return not field.default
    if get_origin(kind) is Literal:
        return get_args(kind)[-1]
    values: dict[object, Any] = {int: 5, float: 0.5, str: "text"}
    return values[kind]


def words(name: str) -> list[str]:
    """Return the command-line arguments that set an option to its other value."""
    spelling = {"num_inference_steps": "steps"}.get(name, name).replace("_", "-")
    value = other_value(name)
    if isinstance(value, bool):
        return [f"--{spelling}" if value else f"--no-{spelling}"]
    return [f"--{spelling}", str(value)]


@pytest.mark.parametrize("name", OPTIONS)
def test_option_can_be_set_over_http(name):
    request = GenerateRequest.model_validate({"prompt": "a cat", name: other_value(name)})
    assert getattr(request, name) == other_value(name)


@pytest.mark.parametrize("body", [{"prompt": "a cat"}, {"prompt": "on", "seconds": "4"}])
@pytest.mark.parametrize("name", SamplingParams.model_fields)
def test_sampling_option_can_be_set_on_openai_routes(name, body):
    model = ExtensionRequest if "seconds" in body else VideoRequest
    assert getattr(model.model_validate({**body, name: other_value(name)}), name) == other_value(name)


@pytest.mark.parametrize("name", OPTIONS)
def test_option_can_be_set_on_the_models_command_line(name):
    arguments = model_command.parser().parse_args(["--prompt", "a cat", *words(name)])
    assert options_of(arguments) == {name: other_value(name)}


@pytest.mark.parametrize("name", OPTIONS)
def test_option_can_be_set_on_the_services_command_line(name):
    arguments = service_parser().parse_args(["generate", "a cat", *words(name)])
    assert options_of_video(arguments) == {name: other_value(name)}


def test_help_of_the_models_command_line_describes_every_option():
    text = " ".join(model_command.parser().format_help().split())
    _, title, options = text.partition(" video: ")
    assert title
    for name, field in GenerationParams.model_fields.items():
        off = "Turn off: " if field.default is True else ""
        assert f" {off}{field.description}" in options, name


@pytest.mark.parametrize("option", ["--task", "--quality"])
def test_value_that_is_no_choice_is_refused_on_the_models_command_line(option, capsys):
    with pytest.raises(SystemExit):
        model_command.parser().parse_args(["--prompt", "a cat", option, "nothing"])
    assert "invalid choice: 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize("annotation", [int, int | None, Annotated[int, "x"], Annotated[int, "x"] | None])
def test_value_type_is_the_type_of_a_given_value(annotation):
    assert value_type(annotation) is int


def test_refusal_of_nul_names_the_character():
    with pytest.raises(InvalidParams, match=r" must not contain the character NUL$"):
        GenerationParams.parse({"negative_prompt": "a\0b"})


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_a_description(name):
    assert GenerationParams.model_fields[name].description


def test_published_spellings_are_accepted():
    shown = model_command.parser().format_help().split()
    assert set(" ".join(PUBLISHED_SPELLINGS).split()) <= set(shown)


@pytest.mark.parametrize(
    ("option", "value"),
    [("num_frames", 0), ("num_frames", 9.0), ("seed", -1), ("seed", 1 << 63), ("task", "dance"), ("fps", 30)],
)
def test_an_invalid_option_is_refused_by_name(option, value):
    with pytest.raises(InvalidParams) as caught:
        GenerationParams.parse({option: value})
    assert caught.value.field == option
