"""Turn the fields of a form into the values that a JSON body would have, and its files.

Texts are plain. Booleans may be written as HTML forms and Python write them, too (`on`, `True`). Lists are
repeated (`prompts`, also `prompts[]`) or numbered (`prompts[0]`), and a part of an object is a field such as
`metadata[order]`: so OpenAI's clients and many others send them. All other values are written as in JSON.
Browsers send every field of a form, so an empty one counts as absent, unless it is a text of the video.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, Self, get_args, get_origin

from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile

from jobs.errors import InvalidRequest
from model.spec.params import value_type
from service.http.json_body import parse_json
from service.inputs.multipart import codec_of

_NAME = re.compile(r"([^\[\]]+)\[([^\[\]]*)\]")
_CHARSET_FIELD = "_charset_"
_INDEX = re.compile(r"[0-9]{0,6}", re.ASCII)
_VIDEO_TEXTS = {"prompt", "prompts", "negative_prompt"}  # an empty one is valid, or refused
_BOOLEANS = {
    **dict.fromkeys(("true", "on", "yes", "1"), True),
    **dict.fromkeys(("false", "off", "no", "0"), False),
}


@dataclass(frozen=True)
class FormFields:
    """The fields of a form by the form of their values. Parts of objects are named as in `video[id]`.

    Attributes:
        files: may be files.
        texts: plain texts, one of several words included.
        lists: lists of texts.
        choices: those lists whose items are one of several words.
        objects: objects whose parts may be fields.
        text_maps: those objects whose parts have any name and are texts.
        booleans: true or false.
        blanks: absent if they are empty.
    """

    files: frozenset[str]
    texts: frozenset[str]
    lists: frozenset[str]
    choices: frozenset[str]
    objects: frozenset[str]
    text_maps: frozenset[str]
    booleans: frozenset[str]
    blanks: frozenset[str]

    @classmethod
    def of(cls, body: type[BaseModel], files: Collection[str]) -> Self:
        """Return the fields of a body, some of which may be files."""
        kinds = dict(_kinds(body))
        models = {name: kind for name, kind in kinds.items() if _is_model(kind)}
        parts = {f"{name}[{part}]": kind for name, model in models.items() for part, kind in _kinds(model)}
        lists = {name: kind for name, kind in kinds.items() if get_origin(kind) is list}
        maps = {name: kind for name, kind in kinds.items() if get_origin(kind) is dict}
        return cls(
            files=frozenset(files),
            texts=frozenset(name for name, kind in (kinds | parts).items() if _is_text(kind)),
            lists=frozenset(lists),
            choices=frozenset(name for name, kind in lists.items() if _is_choice(_item(kind))),
            objects=frozenset(models | maps),
            text_maps=frozenset(name for name, kind in maps.items() if _is_text(_item(kind))),
            booleans=frozenset(name for name, kind in kinds.items() if kind is bool),
            blanks=frozenset((kinds | parts).keys() - _VIDEO_TEXTS),
        )


def read_form(
    form: FormData, fields: FormFields, max_text_bytes: int
) -> tuple[dict[str, Any], dict[str, BinaryIO]]:
    """Return the values and the files of a form, by field.

    `max_text_bytes` limits values that are written as JSON. Raises InvalidRequest, BodyTooLarge.
    """
    reader = _Reader(fields, max_text_bytes)
    for name in form:
        items = [item for item in form.getlist(name) if not _is_empty_file_field(item)]
        uploads = [item.file for item in items if isinstance(item, UploadFile)]
        texts = [item for item in items if isinstance(item, str)]
        if name == _CHARSET_FIELD and not uploads:
            _check_charset(texts)
        elif uploads:
            reader.add_file(name, uploads, has_texts=bool(texts))
        elif texts:
            reader.add_texts(name, texts)
    return reader.all_values(), reader.files


@dataclass
class _Reader:
    fields: FormFields
    max_text_bytes: int
    values: dict[str, Any] = field(default_factory=dict)
    files: dict[str, BinaryIO] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    items: dict[str, dict[str | None, list[str]]] = field(default_factory=dict)

    def add_file(self, name: str, uploads: list[BinaryIO], *, has_texts: bool) -> None:
        if name not in self.fields.files:
            raise InvalidRequest(f"{name}: takes no file", name)
        if len(uploads) > 1 or has_texts:
            raise _given_twice(name)
        self.files[name] = uploads[0]

    def add_texts(self, name: str, texts: list[str]) -> None:
        whole, part = _split(name)
        is_list = whole in self.fields.lists and not part
        if texts == [""] and (whole if is_list else name) in self.fields.blanks:
            return
        if whole in self.fields.lists and _INDEX.fullmatch(part or ""):
            self.items.setdefault(whole, {})[part] = texts
        elif part and whole in self.fields.objects:
            value = self._only_value(name, texts, is_text=whole in self.fields.text_maps)
            self.parts.setdefault(whole, {})[part] = value
        else:
            self.values[name] = self._only_value(name, texts)

    def all_values(self) -> dict[str, Any]:
        for name in self.values.keys() & self.parts.keys():
            raise _given_twice(name)
        return self.values | self.parts | {name: self._list(name) for name in self.items}

    def _list(self, name: str) -> object:
        found = self.items[name]
        numbered = {int(part): texts[0] for part, texts in found.items() if part and len(texts) == 1}
        if len(numbered) == len(found):
            return [numbered[number] for number in sorted(numbered)]
        if len(found) > 1 or any(found):  # written in two ways, or a number twice
            raise _given_twice(name)
        (texts,) = found.values()
        is_json = name in self.fields.choices and len(texts) == 1 and texts[0].lstrip().startswith("[")
        return self._parse(texts[0]) if is_json else texts

    def _only_value(self, name: str, texts: list[str], *, is_text: bool = False) -> object:
        if len(texts) > 1:
            raise _given_twice(name)
        (text,) = texts
        if is_text or name in self.fields.texts:
            return text
        if name in self.fields.booleans:
            return _BOOLEANS.get(text.strip().lower(), text)
        return self._parse(text)

    def _parse(self, text: str) -> object:
        try:
            return parse_json(text.encode(), self.max_text_bytes)
        except ValueError:
            return text  # validation will refuse it and name the expected type


def _check_charset(names: list[str]) -> None:
    """Raise InvalidRequest unless these name UTF-8. Browsers name the charset of a form in such a field."""
    for name in filter(None, names):
        try:
            is_utf8 = codec_of(name) == "utf_8"
        except LookupError:
            is_utf8 = False
        if not is_utf8:
            raise InvalidRequest(
                f"{_CHARSET_FIELD}: must be utf-8; name another charset in the Content-Type of the form",
                _CHARSET_FIELD,
            )


def _split(name: str) -> tuple[str, str | None]:
    """Return the field and what its brackets enclose, None without brackets."""
    match = _NAME.fullmatch(name)
    return (match[1], match[2]) if match else (name, None)


def _given_twice(name: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: is given twice", name)


def _is_empty_file_field(item: str | UploadFile) -> bool:
    """Check for what browsers send for a file field in which no file was chosen."""
    return isinstance(item, UploadFile) and not item.filename and not item.size


def _kinds(body: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    for name, info in body.model_fields.items():
        yield name, value_type(info.annotation)


def _item(kind: object) -> object:
    """Return the type of the items of a list, or of the values of a dict."""
    return value_type(get_args(kind)[-1])


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _is_text(kind: object) -> bool:
    return kind is str or _is_choice(kind)


def _is_choice(kind: object) -> bool:
    return get_origin(kind) is Literal
