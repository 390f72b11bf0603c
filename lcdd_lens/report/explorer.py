"""Channels to walk through: a map of layers × sites for every compared set, and what every method says of a channel.

The map shows the carrier before scripts run; ``comparison.js`` switches it to another set and fills the panel and the
table for the site under the pointer or the focus.
"""

from collections.abc import Mapping
from typing import Any

from lcdd_lens.plotting.methods import CARRIER, method_look
from lcdd_lens.plotting.palette import SITE_MEANINGS
from lcdd_lens.report.carrier_map import heat, kind_heading
from lcdd_lens.report.page import Html, html, section


def explorer_data(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the script needs of one comparison."""
    table = record["channels"]
    return {
        "size": record["carrier_size"],
        "sets": [
            {"name": name, "label": method_look(name).label, "column": _column(table, name)} for name in record["sets"]
        ],
        "places": record["places"],
        "sites": {
            name: {**site, "meaning": SITE_MEANINGS.get(site["kind"], "")} for name, site in table["sites"].items()
        },
    }


def _column(table: Mapping[str, Any], name: str) -> int | None:
    return table["methods"].index(name) if name in table["methods"] else None


def explorer(record: Mapping[str, Any], prefix: str) -> Html:
    """The section with the map; nothing where the record has no channels."""
    sites = record["channels"]["sites"]
    layers = sorted({site["layer"] for site in sites.values()})
    kinds = list(dict.fromkeys(site["kind"] for site in sites.values()))
    by_place = {(site["layer"], site["kind"]): (name, site) for name, site in sites.items()}
    places = record["places"][CARRIER]
    rows: list[Html] = []
    for layer in layers:
        cells = []
        for kind in kinds:
            found = by_place.get((layer, kind))
            if found is None:
                cells.append(html("td"))
                continue
            hook, site = found
            count = places[kind][layer]
            cells.append(
                html(
                    "td",
                    html(
                        "button",
                        count or "·",
                        type="button",
                        class_=f"h{heat(count / site['n'])}",
                        data_site=hook,
                        aria_label=f"layer {layer}, {kind}: {count} of {site['n']} channels",
                        tabindex=0 if not rows and not cells else -1,
                    ),
                )
            )
        rows.append(html("tr", html("th", layer, scope="row"), cells))
    head = html(
        "tr",
        html("th", "layer", scope="col"),
        (html("th", kind_heading(kind), scope="col", title=SITE_MEANINGS.get(kind)) for kind in kinds),
    )
    grid = html(
        "div",
        html(
            "table",
            html("caption", "Channels per layer and site. Arrow keys move; panel and table follow.", class_="hush"),
            html("thead", head),
            html("tbody", rows),
            class_="map",
            data_comparison=prefix,
        ),
        class_="scroll",
    )
    choice = html(
        "label",
        html("span", "Show the first channels of"),
        html(
            "select",
            (html("option", method_look(name).label, value=name, selected=name == CARRIER) for name in record["sets"]),
        ),
    )
    panel = html(
        "aside",
        html("p", "Point at a site, or step into the map with the Tab key, to see its channels.", class_="quiet"),
        class_="panel",
        aria_live="polite",
    )
    return section(
        prefix,
        "channels",
        "Which channels are they?",
        html("div", choice, class_="controls explorer"),
        html("div", grid, panel, class_="columns wide-left"),
        html("div", class_="scroll detail", tabindex=0, role="region", aria_label="Scores of every method"),
        html(
            "p",
            f"Rank among all {record['n_gates']:,} channels, 1 = most important; below it the score in the method’s "
            f"own unit. Marked: among the method’s first {record['carrier_size']}. Columns: channels at this site that "
            "some set has, those of the chosen set first.",
            class_="note",
        ),
        intro="The map counts a set’s channels at every site. Choose a set; the table shows where every other method "
        "ranks the same channels.",
    )
