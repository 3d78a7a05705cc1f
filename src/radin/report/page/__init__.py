"""A run as one HTML file: what was tried, what it bought, and why the winner won. It opens without a network.

    write_page("run")                      # run/report.html

``soups``, ``pool``, ``outcome``: values from a RunRecord. ``charts``: Vega-Lite of them. ``content``: what the page
holds. ``render``: the file.
"""

from radin.report.page.render import REPORT, missing, write_page

__all__ = ["REPORT", "missing", "write_page"]
