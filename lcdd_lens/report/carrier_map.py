"""The carrier as a map of layers × sites; scripts show the channels of the site under pointer or focus."""

from collections.abc import Mapping, Sequence
from typing import Any

from lcdd_lens.plotting.palette import SITE_MEANINGS
from lcdd_lens.plotting.sites import SiteChannels
from lcdd_lens.report.page import Html, html, join, percent, section


def carrier_data(sites: Sequence[SiteChannels], record: Mapping[str, Any]) -> dict[str, Any]:
    dimensions = record.get("dimensions") or {}
    per_head = dimensions.get("d_head")
    return {
        site.hook_name: {
            "layer": site.layer,
            "kind": site.kind,
            "meaning": SITE_MEANINGS.get(site.kind, ""),
            "n": site.n_channels,
            "open": list(site.open),
            "scores": [float(f"{site.scores[index]:.3g}") for index in site.open] if site.scores else [],
            "head": per_head if site.kind in ("attn_q", "attn_k", "attn_v") else None,
        }
        for site in sites
    }


def heat(density: float) -> int:
    """Class of a cell, 0 to 10, by the square root of its density, so that sparse sites still differ."""
    return 0 if density <= 0 else max(1, round(10 * density**0.5))


def carrier_map(run: Mapping[str, Any], sites: Sequence[SiteChannels], prefix: str) -> Html:
    layers = sorted({site.layer for site in sites})
    kinds = list(dict.fromkeys(site.kind for site in sites))
    by_place = {(site.layer, site.kind): site for site in sites}
    total = sum(len(site.open) for site in sites)
    gates = sum(site.n_channels for site in sites)
    rows = []
    for layer in layers:
        here = [site for site in sites if site.layer == layer]
        cells = [_cell(by_place.get((layer, kind)), first=(layer, kind) == (layers[0], kinds[0])) for kind in kinds]
        rows.append(html("tr", html("th", layer, scope="row"), cells, _margin(here)))
    foot = html(
        "tr",
        html("th", "all", scope="row"),
        (_margin([site for site in sites if site.kind == kind]) for kind in kinds),
        _margin(sites),
    )
    head = html(
        "tr",
        html("th", "layer", scope="col"),
        (html("th", kind_heading(kind), scope="col", title=SITE_MEANINGS.get(kind)) for kind in kinds),
        html("th", "all", scope="col"),
    )
    grid = html(
        "div",
        html(
            "table",
            html(
                "caption",
                "Open channels per layer and site. Arrow keys move; the panel shows the channels.",
                class_="hush",
            ),
            html("thead", head),
            html("tbody", rows),
            html("tfoot", foot),
            class_="map",
            data_carrier=prefix,
        ),
        class_="scroll",
    )
    scale = html(
        "p",
        "density 0 %",
        html("span", (html("i", class_=f"h{step}") for step in range(11)), class_="ramp", aria_hidden="true"),
        "100 % (square-root scale)",
        class_="scale",
    )
    panel = html(
        "aside",
        html("p", "Point at a site, or step into the map with the Tab key, to see its channels.", class_="quiet"),
        class_="panel",
        aria_live="polite",
    )
    return section(
        prefix,
        "carrier",
        "Where the carrier lies",
        html("div", html("div", grid, scale), panel, class_="columns wide-left"),
        intro=(
            f"{total:,} of {gates:,} gates are open ({percent(total / gates if gates else None, 2)}). A gate lets one "
            "channel of one site take the fine-tuned weights; every other channel is the base’s."
        ),
    )


def kind_heading(kind: str) -> Html:
    branch, _, part = kind.partition("_")
    return join([html("small", "attn" if branch == "attn" else "MLP" if branch == "ffn" else branch), part])


def _cell(site: SiteChannels | None, first: bool) -> Html:
    if site is None:
        return html("td")
    label = f"layer {site.layer}, {site.kind}: {len(site.open)} of {site.n_channels} open"
    return html(
        "td",
        html(
            "button",
            len(site.open) if site.open else "·",
            type="button",
            class_=f"h{heat(site.density)}",
            data_site=site.hook_name,
            aria_label=label,
            tabindex=0 if first else -1,
        ),
    )


def _margin(sites: Sequence[SiteChannels]) -> Html:
    open_, gates = sum(len(site.open) for site in sites), sum(site.n_channels for site in sites)
    return html(
        "td", html("b", f"{open_:,}"), html("small", percent(open_ / gates if gates else None)), class_="margin"
    )
