"""What one file does on several engines, as plain records."""

from dataclasses import dataclass, field

from isobit.core.records import Certificate


@dataclass(frozen=True, kw_only=True)
class EngineRow:
    """A file on one engine; without a certificate, `refused` says why.

    `equal` of `total` outputs are those of the first engine, `largest` is the largest difference, in steps of the
    output where it has steps; `same_class` counts the samples that get its answer. `milliseconds` is the median of a
    batch of one.
    """

    engine: str
    certificate: Certificate | None = None
    refused: str = ""
    equal: int = 0
    total: int = 0
    largest: float = 0.0
    same_class: int = 0
    samples: int = 0
    milliseconds: float | None = None

    @property
    def first(self) -> str:
        """The op whose integers differ first from the reference, with its name; empty where none does."""
        if self.certificate is None:
            return ""
        found = self.certificate.comparisons[0].first
        return "" if found is None else f"{found.op} {found.name}"


@dataclass(frozen=True, kw_only=True)
class Portability:
    """The rows of a file, the engine that the others are compared with first."""

    file: str
    rows: tuple[EngineRow, ...] = field(default_factory=tuple)

    @property
    def spread(self) -> float | None:
        """Top-1 of the best engine less that of the worst, in points; None without labels."""
        found = []
        for row in self.rows:
            if row.certificate is not None:
                found += [100 * a.right / a.total for a in row.certificate.accuracy if a.execution == row.engine]
        return max(found) - min(found) if found else None

    def __str__(self) -> str:
        lines = [f"{self.file} on {len(self.rows)} engines"]
        for row in self.rows:
            if row.certificate is None:
                lines.append(f"  {row.engine}: refused: {row.refused}")
                continue
            same = f"{row.equal:,} of {row.total:,} outputs as on {self.rows[0].engine}"
            where = f", first {row.first}" if row.first else ""
            lines.append(
                f"  {row.engine} ({row.certificate.instruction_set}): {row.certificate.verdict}{where}; {same}"
            )
        return "\n".join(lines)
