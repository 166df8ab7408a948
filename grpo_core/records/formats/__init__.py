"""The formats that other trainers write, by name. The first that finds its fields reads a path."""

from grpo_core.records.formats.format import Format

FORMATS: dict[str, Format] = {}

__all__ = ["FORMATS", "Format"]
