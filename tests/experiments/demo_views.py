"""Finding widgets and panes in the tabs of the demo, for tests."""

import panel as pn


def widget(tab, name):
    """The widget of a tab with this label, or with a label that begins so."""
    return next(found for found in tab.select(pn.widgets.Widget) if found.name.startswith(name))


def switch_on(tab, name):
    """Check the check box with this label, or with a label that begins so."""
    found = widget(tab, name)
    found.value = list(found.options)


def shown(tab, name):
    """The HTML of the pane with this name."""
    return next(found for found in tab.select(pn.pane.HTML) if found.name == name).object


def texts(tab):
    """The HTML of all panes, one after the other."""
    return "\n".join(str(found.object) for found in tab.select(pn.pane.HTML))
