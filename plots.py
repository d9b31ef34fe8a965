"""The pictures, as the bytes of PNG files. Matplotlib is imported only when one is drawn."""

import io

import numpy as np

# Paul Tol's "muted" scheme and black, told apart with any colour vision
# (P. Tol, "Colour Schemes", SRON technical note EPS/TN/09-002, 2021).
COLOURS = (
    "#332288",
    "#CC6677",
    "#117733",
    "#DDCC77",
    "#88CCEE",
    "#882255",
    "#44AA99",
    "#999933",
    "#AA4499",
    "#000000",
)
MARKERS = "osD^vPX*<>"


def draw_scatter(codes, labels):
    """Codes [N, d] coloured by their digit; in principal components if d is not 2."""
    names = ["latent variable $z_1$", "latent variable $z_2$"]
    if codes.shape[1] != 2:
        codes, shares = principal_components(codes)
        names = [
            f"{name} principal component, {share:.0%} of the variance"
            for name, share in zip(("first", "second"), shares, strict=True)
        ]
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(8, 7.4), layout="constrained")
    apart = 0.07 * np.ptp(codes, axis=0).max()  # so that no two digits overlap
    written = []
    for digit in np.unique(labels):
        own = codes[labels == digit]
        axes.scatter(
            *own.T,
            s=22,
            color=COLOURS[digit],
            marker=MARKERS[digit],
            linewidths=0,
            alpha=0.8,
            label=digit,
        )
        written.append(densest(own, written, apart))
        _outlined(axes, written[-1], digit)
    axes.set_aspect("equal")
    axes.set_xlabel(names[0], fontsize=14)
    axes.set_ylabel(names[1], fontsize=14)
    axes.tick_params(labelsize=12)
    axes.set_title(f"Codes of the last {len(codes)} test images", fontsize=16)
    axes.legend(
        title="digit",
        fontsize=13,
        title_fontsize=13,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        markerscale=1.8,
        handletextpad=0.1,
        frameon=False,
    )
    return _png(figure)


def _outlined(axes, position, digit):
    """Write a digit in its colour, large, with a white border that lifts it off the points."""
    from matplotlib import patheffects

    axes.annotate(
        str(digit),
        position,
        ha="center",
        va="center",
        fontsize=26,
        fontweight="bold",
        color=COLOURS[digit],
        path_effects=[patheffects.withStroke(linewidth=5, foreground="white")],
    )


def principal_components(codes):
    """The first two principal components [N, 2] of codes [N, d] and their shares of variance."""
    centred = codes - codes.mean(0)
    centred = np.pad(centred, ((0, 0), (0, max(0, 2 - codes.shape[1]))))  # one latent: a flat line
    _, scale, directions = np.linalg.svd(centred, full_matrices=False)
    return centred @ directions[:2].T, (scale**2 / (scale**2).sum())[:2]


def densest(codes, others=(), apart=0.0, neighbours=20):
    """The code [2] among [N, 2] with the closest neighbours, at least `apart` from the others."""
    distances = np.linalg.norm(codes[:, None] - codes, axis=2)
    spread = np.sort(distances)[:, : neighbours + 1].sum(1)
    for other in others:
        spread[np.linalg.norm(codes - other, axis=1) < apart] += spread.max()
    return codes[spread.argmin()]


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")  # needs no display
    from matplotlib import pyplot

    return pyplot


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, bbox_inches="tight", pad_inches=0.15)
    _pyplot().close(figure)
    return buffer.getvalue()
