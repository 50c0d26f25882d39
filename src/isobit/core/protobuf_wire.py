"""The bytes of a protobuf message, walked before a parser builds objects from them."""

from typing import Any

from isobit.core.errors import ArtifactError

FIELDS = 1_000_000
"""Fields of a file at most: a parser makes objects of a hundred bytes from fields of two."""

DEPTH = 64
"""Messages within messages at most."""

NAME = 4096
"""Characters of a name at most; texts for people (`doc_string`, metadata) may be longer."""

_TEXTS = frozenset({"doc_string", "value"})


def check_wire(data: bytes, descriptor: Any) -> None:
    """Raise ArtifactError where `data` is no message of that descriptor, or one made to exhaust a reader.

    Lengths have to stay inside the message around them, texts to be UTF-8, and names short and printable: they end
    up in one-line errors.
    """
    left = FIELDS
    open_messages = [(0, len(data), descriptor, 1)]
    while open_messages:
        at, end, kind, depth = open_messages.pop()
        known = kind.fields_by_number
        while at < end:
            left -= 1
            if left < 0:
                raise ArtifactError(f"it has more than {FIELDS:,} fields")
            key, at = _varint(data, at, end)
            field = known.get(key >> 3)
            match key & 7:
                case 0:
                    _, at = _varint(data, at, end)
                case 1:
                    at += 8
                case 5:
                    at += 4
                case 2:
                    size, at = _varint(data, at, end)
                    if size <= end - at and field is not None:
                        if field.message_type is not None:
                            _check_depth(depth)
                            open_messages.append((at, at + size, field.message_type, depth + 1))
                        elif field.type == field.TYPE_STRING:
                            _check_text(data[at : at + size], field.name)
                    at += size
                case other:
                    raise ArtifactError(f"it holds a field of the kind {other}, which ONNX has not")
            if at > end:
                raise ArtifactError("a field ends beyond the message that holds it")


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(data[at : min(end, at + 10)]):
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, at + i + 1
    raise ArtifactError("a number ends beyond the message that holds it")


def _check_depth(depth: int) -> None:
    if depth >= DEPTH:
        raise ArtifactError(f"its messages are nested more than {DEPTH} deep")


def _check_text(content: bytes, field: str) -> None:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"a {field} is not UTF-8") from error
    if field in _TEXTS:
        return
    if len(text) > NAME:
        raise ArtifactError(f"a {field} has {len(text):,} characters, {NAME:,} are allowed: {text[:40]!r}…")
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text):
        raise ArtifactError(f"a {field} holds control characters: {text[:40]!r}")
