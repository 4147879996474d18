"""Numbers as people say them: with units, as money, in percent, in words. In: bounds and a manner. Out: Values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from random import Random

from functionary_vllm.training.dataset.kind import Kind, Schema, Value
from functionary_vllm.training.dataset.text import number_words


@dataclass(frozen=True)
class Number(Kind):
    """Numbers from `low` to `high`, said in the way of `manner`, of which a measure has a unit."""

    low: float
    high: float
    manner: str = "number"
    unit: str = ""
    whole: bool | None = None  # None: not fixed yet

    def variant(self, rng: Random) -> Number:
        if self.whole is not None:
            return self
        narrow = self.high - self.low < 5 or self.low != int(self.low) or self.high != int(self.high)
        return replace(self, whole=not narrow and rng.random() < (0.9 if self.unit in _MOSTLY_WHOLE else 0.6))

    def schema(self) -> Schema:
        return {"type": "integer" if self.whole and self.manner != "rate" else "number"}

    @property
    def note(self) -> str:  # type: ignore[override]
        return {"rate": "as a decimal fraction, e.g. 0.05 for 5%", "percent": "in percent"}.get(self.manner, "")

    def draw(self, rng: Random, held_out: bool) -> Value:
        value = self._number(rng)
        said = self._digits(rng, value)
        match self.manner:
            case "count" if isinstance(value, int) and 1 <= value <= 20 and rng.random() < 0.4:
                return Value(number_words(value), value)
            case "money":
                said = rng.choice((f"${said}", f"${said}", f"{said} dollars"))
            case "percent":
                said = rng.choice((f"{value}%", f"{value}%", f"{value} percent", f"{value} %"))
            case "rate":
                return Value(
                    rng.choice((f"{value}%", f"{value}%", f"{value} percent")), _plain(Decimal(str(value)) / 100)
                )
            case "measure":
                said = _measured(rng, said, value, self.unit)
        return Value(said, value)

    def _digits(self, rng: Random, value: float) -> str:
        """The number as it is written: 12000, 12,000, 12k, 12 thousand."""
        if value < 1000 or self.manner in ("year", "coordinate") or rng.random() < 0.45:
            return f"{value}"
        if value % 100_000 == 0 and value >= 1_000_000:
            return f"{_plain(Decimal(str(value)) / 1_000_000)} million"
        if value % 1000 == 0 and rng.random() < 0.5:
            return f"{_plain(Decimal(str(value)) / 1000)}{rng.choice(('k', 'k', ' thousand'))}"
        return f"{value:,}"

    def _number(self, rng: Random) -> int | float:
        low, high = self.low, self.high
        if self.whole or (self.whole is None and low == int(low) and high == int(high) and rng.random() < 0.6):
            if high - low > 500 and rng.random() < 0.6:  # people like round numbers
                step = 10 ** (len(str(int(high - low))) - 2)
                return max(int(low), int(rng.randint(int(low), int(high)) // step * step))
            return rng.randint(int(low), int(high))
        if self.manner == "coordinate":
            return round(rng.uniform(low, high), 4)
        if self.manner == "money" and rng.random() < 0.6:
            return int(rng.uniform(low, high)) + rng.choice((0.99, 0.95, 0.5, 0.75, 0.25))
        digits = 3 if high - low < 0.2 else 2 if high - low < 3 else rng.choice((1, 1, 2))
        return _plain(Decimal(str(round(rng.uniform(low, high), digits))))


def _plain(number: Decimal) -> int | float:
    return int(number) if number == number.to_integral_value() else float(number)


_MOSTLY_WHOLE = frozenset(
    ("seconds", "minutes", "hours", "days", "weeks", "months", "years", "g", "ml", "kcal", "MB", "bytes")
)
_UNITS: Mapping[str, tuple[str, ...]] = {
    "kg": ("kg", "kg", "kilograms", "kilos"),
    "g": ("g", "grams"),
    "lb": ("lb", "lbs", "pounds"),
    "km": ("km", "km", "kilometers"),
    "m": ("m", "m", "meters", "metres"),
    "cm": ("cm", "cm", "centimeters"),
    "mm": ("mm", "millimeters"),
    "miles": ("miles", "mi"),
    "feet": ("feet", "ft"),
    "inches": ("inches", "in"),
    "liters": ("liters", "l", "litres"),
    "ml": ("ml", "milliliters"),
    "hours": ("hours", "hours", "h"),
    "minutes": ("minutes", "minutes", "min"),
    "seconds": ("seconds", "seconds", "s"),
    "celsius": ("degrees Celsius", "°C", "Celsius"),
    "fahrenheit": ("degrees Fahrenheit", "°F"),
    "watts": ("watts", "W"),
    "volts": ("volts", "V"),
    "amps": ("amps", "A", "amperes"),
    "ohms": ("ohms", "ohm"),
    "newtons": ("newtons", "N"),
    "joules": ("joules", "J"),
    "pascals": ("pascals", "Pa"),
    "hertz": ("hertz", "Hz"),
    "degrees": ("degrees", "degrees", "°"),
    "km/h": ("km/h", "kilometers per hour"),
    "mph": ("mph", "miles per hour"),
    "m/s": ("m/s", "meters per second"),
    "GB": ("GB", "gigabytes"),
    "MB": ("MB", "megabytes"),
    "kcal": ("kcal", "calories"),
}


def _measured(rng: Random, said: str, value: float, unit: str) -> str:
    word = rng.choice(_UNITS.get(unit, (unit,)))
    if value == 1 and len(word) > 3 and word.endswith("s") and "elsius" not in word:
        word = word[:-1]
    return f"{said}{word}" if word.startswith("°") or (len(word) <= 3 and rng.random() < 0.3) else f"{said} {word}"
