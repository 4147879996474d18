"""Concepts by combination: what one does with records, attributes of things, quantities of bodies.

In: nothing but the tables below. Out: Concepts of the same shape as the hand-written ones, thousands of them. They
teach what those cannot in their number: that `cancel_shipment` is not `track_shipment`, that a parameter is what its
name and description say, and that values are copied. Refuses to know how they are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from functionary_vllm.training.dataset.concepts import Concept, read_concept

# What is kept in records: (its name, what identifies one, fields that can be set: name -> kind or values).
_RECORDS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("shipment", "tracking number", {"destination": "city", "weight": "measure 1 90 kg", "carrier": ["DHL", "UPS", "FedEx", "USPS", "GLS", "DPD"]}),
    ("invoice", "invoice number", {"amount": "money 20 9000", "customer": "company", "due date": "date"}),
    ("subscription", "subscription id", {"plan": ["basic", "premium", "family", "student", "team"], "customer": "person"}),
    ("ticket", "ticket id", {"subject": "title", "assignee": "person", "team": ["billing", "support", "network", "sales"]}),
    ("employee", "employee id", {"name": "person", "position": "job", "salary": "money 30000 150000"}),
    ("patient", "patient id", {"name": "person", "age": "integer 1 95", "condition": "disease"}),
    ("student", "student number", {"name": "person", "grade": "integer 1 12", "course": "subject"}),
    ("warehouse item", "SKU", {"quantity": "integer 1 900", "shelf": "code"}),
    ("support case", "case number", {"title": "title", "contact": "email"}),
    ("blog post", "post id", {"title": "title", "author": "person", "category": "topic"}),
    ("photo album", "album name", {"place": "city", "year": "year 1990 2025"}),
    ("playlist", "playlist name", {"genre": "genre", "description": "message"}),
    ("calendar event", "event id", {"title": "title", "day": "date", "start": "clock"}),
    ("reminder", "reminder id", {"text": "message", "time": "clock"}),
    ("bank transfer", "transfer id", {"amount": "money 5 20000", "recipient": "person"}),
    ("credit card", "card number", {"spending limit": "money 500 20000", "holder": "person"}),
    ("loan application", "application id", {"amount": "money 1000 90000", "applicant": "person"}),
    ("insurance claim", "claim number", {"amount": "money 100 30000", "claimant": "person"}),
    ("hotel reservation", "reservation number", {"guest": "person", "nights": "count 1 14", "hotel": "hotel"}),
    ("rental car", "license plate", {"model": "car", "city": "city"}),
    ("flight booking", "booking reference", {"passenger": "person", "destination": "airport"}),
    ("parking permit", "permit number", {"street": "street", "vehicle": "car"}),
    ("library card", "card id", {"holder": "person", "city": "city"}),
    ("recipe", "recipe name", {"servings": "count 1 12", "main ingredient": "ingredient"}),
    ("grocery list", "list name", {"item": "food", "quantity": "integer 1 20"}),
    ("workout plan", "plan name", {"sport": "sport", "days a week": "count 1 7"}),
    ("medical appointment", "appointment id", {"doctor": "person", "day": "date"}),
    ("prescription", "prescription number", {"medicine": "medicine", "patient": "person"}),
    ("vaccine record", "record number", {"disease": "disease", "day": "date"}),
    ("sensor", "sensor id", {"room": ["kitchen", "attic", "garage", "lobby", "server room"], "interval": "measure 1 60 seconds"}),
    ("light", "light name", {"brightness": "percent 1 100", "color": "color"}),
    ("thermostat", "thermostat id", {"temperature": "measure 15 28 celsius"}),
    ("camera", "camera id", {"location": ["front door", "garden", "hallway", "parking lot"]}),
    ("server", "hostname", {"memory": "measure 2 256 GB", "region": ["us-east-1", "eu-west-1", "ap-south-1", "eu-central-1"]}),
    ("database", "database name", {"size": "measure 1 900 GB", "engine": ["PostgreSQL", "MySQL", "MongoDB", "Redis", "SQLite"]}),
    ("container", "container id", {"image": ["nginx", "redis", "alpine", "node", "ubuntu"], "port": "integer 80 9000"}),
    ("repository", "repository name", {"owner": "username", "language": ["Python", "Rust", "Go", "Java", "C++"]}),
    ("pull request", "number", {"title": "title", "reviewer": "username"}),
    ("firewall rule", "rule id", {"address": "ip", "port": "integer 20 9000"}),
    ("domain name", "domain", {"registrar": "company"}),
    ("API key", "key id", {"owner": "email"}),
    ("user account", "username", {"email": "email", "country": "country"}),
    ("mailing list", "list name", {"owner": "email"}),
    ("newsletter", "newsletter name", {"topic": "topic", "weekday": "weekday"}),
    ("survey", "survey id", {"title": "title", "audience": ["customers", "employees", "students", "visitors"]}),
    ("contract", "contract number", {"partner": "company", "end": "date"}),
    ("purchase order", "order number", {"supplier": "company", "amount": "money 50 90000"}),
    ("coupon", "coupon code", {"discount": "percent 5 60", "expiry": "date"}),
    ("product listing", "listing id", {"price": "money 1 2500", "title": "title"}),
    ("delivery", "delivery id", {"address": "address", "driver": "person"}),
    ("truck", "truck number", {"driver": "person", "load": "measure 100 9000 kg"}),
    ("construction site", "site name", {"city": "city", "workers": "integer 5 300"}),
    ("apartment", "apartment number", {"rent": "money 400 4000", "tenant": "person"}),
    ("lease", "lease id", {"tenant": "person", "months": "count 3 36"}),
    ("auction", "auction id", {"item": "product", "start price": "money 5 5000"}),
    ("painting", "catalog number", {"artist": ["Monet", "Picasso", "Frida Kahlo", "Rembrandt", "Turner"], "year": "year 1500 2020"}),
    ("museum tour", "tour id", {"museum": "museum", "visitors": "count 2 30"}),
    ("concert ticket", "ticket number", {"artist": "artist", "seat": "code"}),
    ("tournament", "tournament name", {"sport": "sport", "players": "integer 4 128"}),
    ("lesson", "lesson id", {"subject": "subject", "teacher": "person"}),
    ("exam", "exam id", {"subject": "subject", "minutes": "integer 20 240"}),
    ("garden bed", "bed number", {"plant": "plant", "area": "measure 1 40 square meters"}),
    ("pet", "chip number", {"name": "first_name", "species": "animal"}),
    ("bug report", "bug id", {"title": "title", "component": ["login", "search", "checkout", "editor", "installer"]}),
    ("backup", "backup id", {"folder": "folder", "retention": "measure 1 90 days"}),
    ("email template", "template name", {"subject": "title", "language": "language"}),
    ("voice message", "message id", {"caller": "person", "length": "measure 5 300 seconds"}),
    ("podcast episode", "episode number", {"title": "title", "guest": "person"}),
    ("job posting", "posting id", {"position": "job", "city": "city"}),
    ("donation", "donation id", {"amount": "money 5 5000", "donor": "person"}),
)  # fmt: skip

# What is done with a record: (verb, the like, description, phrases). {r} is the record, {i} what identifies it.
_DEEDS: tuple[tuple[str, tuple[str, ...], str, tuple[str, ...], str], ...] = (
    ("get", ("show", "fetch"), "Retrieves the details of one {r} by its {i}.", (
        "Show me {r} {id}", "What do we have on {r} {id}?", "Pull up the {r}[ with {i} {id}]", "Details of {r} {id}, please",
        "I need to see the {r} whose {i} is {id}"), "Here is {r} {id}."),
    ("delete", ("remove", "erase"), "Deletes one {r} for good.", (
        "Delete {r} {id}", "Please remove the {r}[ with {i} {id}]", "{r} {id} is no longer needed, erase it",
        "Get rid of the {r} {id}", "Can you wipe {r} {id} from the system?"), "The {r} {id} has been deleted."),
    ("archive", ("close",), "Archives a {r}, so that it can be read but not changed.", (
        "Archive {r} {id}", "Close the {r}[ with {i} {id}]", "We're done with {r} {id}, put it into the archive",
        "Move {r} {id} to the archive"), "The {r} {id} is archived."),
    ("duplicate", ("copy", "clone"), "Makes a copy of an existing {r}.", (
        "Duplicate {r} {id}", "I need a copy of the {r}[ with {i} {id}]", "Clone {r} {id} for me",
        "Make a second {r} just like {id}"), "The copy of {r} {id} is there."),
    ("export", ("download",), "Exports a {r} to a file.", (
        "Export {r} {id}[ as {format}]", "Can I have {r} {id}[ in {format}]?", "Download the {r}[ with {i} {id}][ as {format}]",
        "I want a {format} of {r} {id}|format", "Save {r} {id} to a file[, {format} please]"), "The {r} {id} was exported."),
    ("share", ("send",), "Shares a {r} with somebody by e-mail.", (
        "Share {r} {id} with {email}", "Send the {r}[ {id}] to {email}", "{email} needs access to {r} {id}",
        "Let {email} see the {r} whose {i} is {id}", "Give {email} access to {r} {id}"), "The {r} {id} is shared with {email}."),
    ("assign", ("hand over",), "Makes a person responsible for a {r}.", (
        "Assign {r} {id} to {person}", "{person} should take care of the {r}[ with {i} {id}]", "Hand {r} {id} over to {person}",
        "From now on {r} {id} belongs to {person}"), "{person} now takes care of the {r} {id}."),
    ("approve", ("sign off",), "Approves a {r} that is waiting, with an optional remark.", (
        "Approve {r} {id}[ with the remark {remark}]", "Sign off on the {r}[ {id}][ and note {remark}]",
        "{r} {id} looks good, approve it[, remark: {remark}]", "You can release {r} {id}"), "The {r} {id} is approved."),
    ("track", ("get status of", "check"), "Tells the current state of a {r}.", (
        "What's the status of {r} {id}?", "How far is the {r}[ with {i} {id}]?", "Any news on {r} {id}?", "Track {r} {id}",
        "Check on {r} {id}"), "The {r} {id} is in progress."),
)  # fmt: skip

# Attributes: (attribute, of what, the kind of that, phrases where they differ from the common ones).
_ATTRIBUTES: tuple[tuple[str, str, str], ...] = (
    *((a, "city", "city") for a in ("population", "mayor", "elevation", "crime rate", "cost of living", "public holidays", "postal code", "air quality", "average rent", "sunrise time", "sister cities", "noise level")),
    *((a, "country", "country") for a in ("capital", "currency", "GDP", "national anthem", "official language", "life expectancy", "area", "birth rate", "head of state", "calling code", "minimum wage", "literacy rate", "voting age", "flag colors")),
    *((a, "company", "company") for a in ("share price", "headquarters", "founder", "annual revenue", "number of employees", "credit rating", "customer hotline", "market value", "board members")),
    *((a, "person", "player") for a in ("birthday", "height", "career statistics", "net worth", "salary", "biography", "hometown")),
    *((a, "animal", "animal") for a in ("lifespan", "top speed", "diet", "habitat", "conservation status", "gestation period", "average weight", "scientific name")),
    *((a, "food", "food") for a in ("calories", "vitamin content", "sugar content", "shelf life", "protein content", "glycemic index", "carbon footprint", "allergens")),
    *((a, "element", "element") for a in ("atomic number", "melting point", "density", "boiling point", "half-life", "electron configuration", "discoverer")),
    *((a, "planet", "planet") for a in ("gravity", "number of moons", "orbital period", "distance from the sun", "surface temperature", "diameter")),
    *((a, "book", "book") for a in ("author", "publication year", "number of pages", "plot summary", "ISBN", "publisher")),
    *((a, "film", "film") for a in ("director", "cast", "box office result", "running time", "age rating", "soundtrack", "filming location")),
    *((a, "song", "song") for a in ("lyrics", "composer", "tempo", "release date", "chart position", "key")),
    *((a, "car", "car") for a in ("fuel consumption", "list price", "top speed", "trunk volume", "safety rating", "towing capacity", "horsepower")),
    *((a, "medicine", "medicine") for a in ("side effects", "dosage", "interactions", "price", "active ingredient", "generic name")),
    *((a, "plant", "plant") for a in ("watering schedule", "light needs", "flowering season", "toxicity", "hardiness zone", "soil type")),
    *((a, "university", "university") for a in ("tuition fees", "ranking", "acceptance rate", "founding year", "number of students", "motto")),
    *((a, "sports team", "team") for a in ("coach", "next match", "stadium", "league position", "last result", "captain", "top scorer")),
    *((a, "language", "language") for a in ("number of speakers", "alphabet", "grammar rules", "language family", "greetings")),
    *((a, "landmark", "landmark") for a in ("opening hours", "entrance fee", "height", "architect", "year of construction", "number of visitors")),
    *((a, "airport", "airport") for a in ("departures", "terminal map", "security waiting time", "parking fees", "delays")),
    *((a, "website", "domain") for a in ("response time", "owner", "certificate expiry", "monthly visitors", "server location")),
)  # fmt: skip

# Quantities: (quantity, of what, its parameters: name -> kind).
_MEASURES: tuple[tuple[str, str], ...] = (
    ("mass", "measure 1 500 kg"), ("length", "measure 1 90 m"), ("width", "measure 1 40 m"), ("height", "measure 1 60 m"), ("radius", "measure 1 30 cm"),
    ("speed", "measure 1 120 m/s"), ("temperature", "measure 0 300 celsius"), ("pressure", "measure 100 90000 pascals"), ("voltage", "measure 1 240 volts"),
    ("current", "measure 1 20 amps"), ("time", "measure 1 600 seconds"), ("distance", "measure 1 900 km"), ("angle", "measure 1 89 degrees"), ("force", "measure 1 900 newtons"),
    ("volume", "measure 1 90 liters"), ("density", "number 1 20"), ("frequency", "measure 20 9000 hertz"), ("power", "measure 10 5000 watts"), ("energy", "measure 5 9000 joules"),
    ("price", "money 1 5000"), ("quantity", "integer 1 900"), ("interest rate", "percent 1 15"), ("years", "integer 1 40"), ("population", "integer 1000 900000"),
    ("growth rate", "percent 1 20"), ("number of workers", "integer 2 90"), ("fixed costs", "money 500 90000"), ("tax rate", "percent 5 45"), ("depth", "measure 1 90 m"),
)  # fmt: skip
_QUANTITIES: tuple[str, ...] = (
    *(
        "flow rate,load factor,drag,surface area,heat loss,efficiency,stress,yield,torque,resistance,capacity,momentum,lift,buoyancy,stiffness".split(
            ","
        )
    ),
    *(
        "break-even point,return,margin,depreciation,turnover,payback period,unit cost,demand,dilution,concentration,half-life,growth".split(
            ","
        )
    ),
    *(
        "vibration,deflection,signal strength,bandwidth,throughput,noise level,humidity,moisture,illumination,exposure,focal length,magnification".split(
            ","
        )
    ),
)
_BODIES: tuple[str, ...] = tuple(
    "pipe,beam,tank,battery,motor,wing,spring,roof,bridge,pump,furnace,antenna,lens,turbine,reservoir,cable,factory,fund,field,colony,reactor,rocket,pendulum,boat,wall,crane,fan,greenhouse".split(
        ","
    )
)


def _records() -> Iterator[dict[str, Any]]:
    for record, identifier, fields in _RECORDS:
        key = identifier.lower().replace(" ", "_")
        kind = {"hostname": "hostname", "username": "username", "domain": "domain"}.get(
            key, "title" if "name" in key else "code"
        )
        about = {
            "about": [f"The {identifier} of the {record}.", f"{identifier[0].upper()}{identifier[1:]}."],
            "value": kind,
        }
        for verb, others, does, phrases, told in _DEEDS:
            extra = {
                "export": {"format": {"about": "File format.", "optional": True, "default": "pdf", "choices": {"pdf": ["PDF", "a PDF"], "csv": ["CSV", "a CSV file"], "json": ["JSON"]}}},
                "share": {"email": {"about": ["E-mail address of the recipient.", "Who receives it."], "value": "email"}},
                "assign": {"person": {"about": ["Full name of the person.", "Who is responsible."], "value": "person"}},
                "approve": {"remark": {"about": "A remark for the file.", "optional": True, "value": "message"}},
            }.get(verb, {})  # fmt: skip
            filled = [
                p.split("|")[0].replace("{r}", record).replace("{i}", identifier).replace("{id}", f"{{{key}}}")
                for p in phrases
            ]
            yield {
                "name": f"{verb} {record}",
                "stem": record,
                "also": [f"{other} {record}" for other in others],
                "about": [does.format(r=record, i=identifier), does.format(r=record, i=identifier).split(",")[0].rstrip(".") + "."],
                "parameters": {key: about, **extra},
                "say": [p for p in filled if "{format} of" not in p],
                "near": [f"How many {record}s are there altogether?", f"Explain to me what a {record} is good for.", f"Rename {record} {{code}}"],
                "result": {key: f"{{{key}}}", "status": "ok"},
                "tell": [told.replace("{r}", record).replace("{id}", f"{{{key}}}")],
            }  # fmt: skip
        yield from _settings(record, identifier, key, about, fields)


def _settings(
    record: str, identifier: str, key: str, about: dict[str, Any], fields: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Creating a record with its fields, finding records by one of them, and changing one."""
    told = {
        name.replace(" ", "_"): {
            "about": [f"The {name} of the {record}.", f"{name[0].upper()}{name[1:]}."],
            **({"values": kind} if isinstance(kind, list) else {"value": kind}),
        }
        for name, kind in fields.items()
    }
    names = [(name, name.replace(" ", "_")) for name in fields]
    with_all = ", ".join(f"{name} {{{slot}}}" for name, slot in names)
    yield {
        "name": f"create {record}",
        "stem": record,
        "also": [f"add {record}", f"new {record}"],
        "about": [f"Creates a new {record}.", f"Adds a {record} to the system and returns its {identifier}."],
        "parameters": told,
        "say": [
            f"Create a {record}: {with_all}",
            f"Add a new {record} with {' and '.join(f'{name} {{{slot}}}' for name, slot in names)}",
            f"I need a new {record}[, {names[0][0]} {{{names[0][1]}}}]" + "".join(f", {name} {{{slot}}}" for name, slot in names[1:]),
            f"Please set up a {record}. " + " ".join(f"The {name} is {{{slot}}}." for name, slot in names),
            f"New {record}" + "".join(f", {{{slot}}} as the {name}" for name, slot in names),
        ],
        "near": [f"Delete {record} {{code}}", f"How many {record}s did we create last year?", f"Who invented the {record}?"],
        "result": {key: "{code}", "created": True},
        "tell": [f"The {record} was created; its {identifier} is {{code}}."],
    }  # fmt: skip
    for name, slot in names:
        yield {
            "name": f"update {record} {name}",
            "stem": record,
            "also": [f"set {record} {name}", f"change {name} of {record}"],
            "about": [f"Changes the {name} of a {record}.", f"Sets a new {name} for an existing {record}."],
            "parameters": {
                key: about,
                slot: {**told[slot], "about": [f"The new {name}.", f"New {name} of the {record}."]},
            },
            "say": [
                f"Change the {name} of {record} {{{key}}} to {{{slot}}}",
                f"Set {record} {{{key}}}'s {name} to {{{slot}}}",
                f"{record} {{{key}}} has a new {name}[: {{{slot}}}]",
                f"The {name} of the {record} with {identifier} {{{key}}} should be {{{slot}}}",
                f"Make {{{slot}}} the {name} of {record} {{{key}}}",
            ],
            "near": [f"What is the {name} of {record} {{{key}}}?", f"Delete {record} {{{key}}}"],
            "result": {key: f"{{{key}}}", slot: f"{{{slot}}}"},
            "tell": [f"The {name} of {record} {{{key}}} is now {{{slot}}}."],
        }
        yield {
            "name": f"find {record}s by {name}",
            "stem": record,
            "also": [f"search {record}s by {name}", f"list {record}s with {name}"],
            "about": [f"Finds all {record}s with a given {name}.", f"Search {record}s by {name}."],
            "parameters": {
                slot: told[slot],
                "limit": {
                    "about": "How many results at most.",
                    "value": "integer 1 50",
                    "optional": True,
                    "default": 10,
                },
            },
            "say": [
                f"Which {record}s have the {name} {{{slot}}}?[ {{limit}} at most.]",
                f"Find[ up to {{limit}}] {record}s with {name} {{{slot}}}",
                f"List {record}s[ by {name} {{{slot}}}][, max {{limit}}]",
                f"Search for {record}s whose {name} is {{{slot}}}[, not more than {{limit}}]",
                f"Show me the[ first {{limit}}] {record}s, {name} {{{slot}}}",
            ],
            "near": [
                f"Change the {name} of {record} {{code}} to something else",
                f"Delete all {record}s",
                f"Create a {record}",
            ],
            "result": {"found": "{integer 1 9}"},
            "tell": [f"There are {{integer 1 9}} {record}s with {name} {{{slot}}}."],
        }


def _attributes() -> Iterator[dict[str, Any]]:
    for attribute, thing, kind in _ATTRIBUTES:
        slot = thing.replace(" ", "_")
        yield {
            "stem": attribute,
            "name": f"get {attribute}" if thing in attribute else f"get {thing} {attribute}",
            "also": [f"find {attribute} of {thing}", f"lookup {thing} {attribute}", f"{thing} {attribute}"],
            "about": [f"Get the {attribute} of a {thing}.", f"Looks up the {attribute} for the given {thing}."],
            "parameters": {slot: {"about": [f"Name of the {thing}.", f"The {thing} to look up."], "value": kind}},
            "say": [
                f"What is the {attribute} of {{{slot}}}?",
                f"Tell me the {attribute} of {{{slot}}}",
                f"I want to know the {attribute}[ of {{{slot}}}]",
                f"{{{slot}}} {attribute}?",
                f"Can you look up {{{slot}}}'s {attribute} for me?",
                f"Do you know the {attribute} for {{{slot}}}?",
            ],
            "near": [
                f"Who first wrote about {{{slot}}}?",
                f"Tell me a joke about {{{slot}}}",
                f"Draw a picture of {{{slot}}}",
            ],
            "result": {slot: f"{{{slot}}}", attribute.replace(" ", "_"): "{integer 3 900}"},
            "tell": [f"The {attribute} of {{{slot}}} is {{integer 3 900}}."],
        }


def _quantities() -> Iterator[dict[str, Any]]:
    for i, quantity in enumerate(_QUANTITIES):
        for j, body in enumerate(_BODIES):
            start = (7 * i + 5 * j) % len(_MEASURES)
            chosen = [_MEASURES[(start + step) % len(_MEASURES)] for step in (0, 4, 11)[: 2 + (i + j) % 2]]
            slots = [(name, name.replace(" ", "_")) for name, _ in chosen]
            each = [f"{name} {{{slot}}}" for name, slot in slots]
            extra = {
                "precision": {
                    "about": "Number of decimals of the result.",
                    "value": "integer 1 6",
                    "optional": True,
                    "default": 2,
                }
            }
            yield {
                "name": f"calculate {body} {quantity}",
                "stem": quantity,
                "also": [f"{quantity} of {body}", f"compute {quantity}", f"{body} {quantity} calculator"],
                "about": [f"Calculates the {quantity} of a {body}.", f"Computes {quantity} for a {body} from {', '.join(n for n, _ in slots)}."],
                "parameters": {
                    **{slot: {"about": [f"The {name}.", f"{name[0].upper()}{name[1:]} of the {body}."], "value": kind} for (name, slot), (_, kind) in zip(slots, chosen, strict=True)},
                    **(extra if (i + j) % 3 == 0 else {}),
                },
                "say": [
                    f"Calculate the {quantity} of a {body} with " + " and ".join(each) + ("[, {precision} decimals]" if (i + j) % 3 == 0 else ""),
                    f"What is the {quantity} of a {body}[ of {each[0]}], given " + ", ".join(each[1:]) + "?",
                    f"A {body} has " + ", ".join(each) + f". How large is its {quantity}?" + ("[ Round to {precision} places.]" if (i + j) % 3 == 0 else ""),
                    f"I need the {quantity} for this {body}: " + ", ".join(f"{name} = {{{slot}}}" for name, slot in slots),
                    f"If the {slots[0][0]} is {{{slots[0][1]}}} and " + " and ".join(f"the {name} {{{slot}}}" for name, slot in slots[1:]) + f", what {quantity} does the {body} have?",
                ],
                "near": [f"What is a {body}?", f"Who sells a {body} near me?", f"Explain {quantity} in simple words."],
                "result": {quantity.replace(" ", "_").replace("-", "_"): "{number 1 500}"},
                "tell": [f"The {quantity} is {{number 1 500}}.", f"The {body} has a {quantity} of {{number 1 500}}."],
            }  # fmt: skip


@cache
def combined() -> tuple[Concept, ...]:
    """All combinations, in a fixed order."""
    made = [("records", _records()), ("facts", _attributes()), ("quantities", _quantities())]
    return tuple(read_concept(raw, domain) for domain, entries in made for raw in entries)
