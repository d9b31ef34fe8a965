"""The pictures of a training run, and what they are drawn from.

To add a picture, write a function of a `PictureData` that gives the bytes of a file, and name it in
FIGURES. How things are drawn is in lib/plots.py and lib/explorer.py.
"""

from typing import NamedTuple

import torch

from lib import explorer, plots


class PictureData(NamedTuple):
    """What the pictures are drawn from."""

    model: torch.nn.Module
    digits: NamedTuple  # the images and labels, as data.py reads them
    log: list  # the metrics of each epoch
    # {how many epochs were done: `take_snapshot` then, as arrays}, in order. The last is of the
    # final model.
    snapshots: dict
    plane: plots.Plane  # that shows the final model's codes
    last_log_p_x: torch.Tensor | None  # log p(x) of the last test images, if there is one

    @property
    def final(self):
        """The last of the snapshots."""
        return self.snapshots[self.epochs_done]

    @property
    def epochs_done(self):
        """After how many epochs the final model was saved."""
        return max(self.snapshots)

    def points(self, snapshot):
        """The last test codes of a snapshot in the plane: [N, 2]."""
        return self.plane.project(snapshot["last_codes"])


@torch.no_grad()
def take_snapshot(model, digits):
    """What the pictures show of the model as it is now: codes and decoded images."""
    model.eval()
    codes = model.codes(torch.cat([digits.x_shown, digits.last_x_test]))
    shown_codes, last_codes = codes.tensor_split([len(digits.x_shown)])
    shown_images = model.decode(shown_codes).sigmoid()
    return {
        "last_codes": last_codes.cpu(),  # of the last 1000 test images
        "shown_codes": shown_codes.cpu(),  # of ten test images of each digit
        "shown_images": shown_images.cpu(),  # what these codes decode to
    }


def picture_data(model, digits, history, last_log_p_x=None):
    """What the pictures show of a training up to its best epoch, whose weights the model has."""
    final_epochs = history.best_epoch + 1
    taken = {**history.snapshots, final_epochs: take_snapshot(model, digits)}
    snapshots = {}
    for epochs_done in sorted(taken):
        if epochs_done <= final_epochs:
            snapshot = taken[epochs_done]
            snapshots[epochs_done] = {name: tensor.numpy() for name, tensor in snapshot.items()}
    plane = plots.plane_of(snapshots[final_epochs]["last_codes"])
    return PictureData(model, digits, history.log, snapshots, plane, last_log_p_x)


def draw_scatter(shown):
    """The homework's picture: the codes of the last 1000 test images, coloured by digit."""
    labels = shown.digits.last_test_labels
    images = f"{len(labels)} {shown.digits.test_name} images"
    if shown.digits.test_name == "test":
        images = f"the last {images}"
    title = f"Codes of {images}"
    return plots.draw_scatter(shown.points(shown.final), labels, shown.plane, title)


def draw_scatter_epochs(shown):
    """The same codes as training goes on."""
    points = {}
    for epochs_done, snapshot in shown.snapshots.items():
        points[after(epochs_done)] = shown.points(snapshot)
    return plots.draw_scatters(points, shown.digits.last_test_labels, shown.plane)


def draw_reconstructions(shown):
    """Ten test images of each digit, and what their codes decode to as training goes on."""
    panels = {f"{shown.digits.test_name} images": shown.digits.x_shown.cpu().numpy()}
    for epochs_done, snapshot in shown.snapshots.items():
        if epochs_done > 0:  # before training all is grey
            panels[after(epochs_done)] = snapshot["shown_images"]
    return plots.draw_image_panels(panels)


def after(epochs_done):
    """When a snapshot was taken, as a title."""
    if epochs_done == 0:
        return "before training"
    return "after 1 epoch" if epochs_done == 1 else f"after {epochs_done} epochs"


def draw_loss(shown):
    """L_tot over the epochs, and the gap between the encoder and the Laplace posterior."""
    curves = {}
    for key, name, style, colour in (
        ("train", "train", "o-", plots.COLOURS[6]),
        ("validation", "validation", "s-", plots.COLOURS[4]),
        ("test", "test", "^-", plots.COLOURS[0]),
        ("laplace", "test, Laplace posterior", "--", plots.COLOURS[5]),
    ):
        measured = {n: entry[key] for n, entry in enumerate(shown.log, start=1) if key in entry}
        if not measured:
            continue
        l_tot = [terms["L_tot"] for terms in measured.values()]
        label = f"{name}, {l_tot[0]:.1f} to {l_tot[-1]:.1f}"  # one sample: no second decimal
        curves[key] = plots.Curve(label, list(measured), l_tot, style, colour)
    gap = None
    if "laplace" in curves:
        epochs_done = curves["laplace"].x
        lower = curves["laplace"].y
        upper = [shown.log[n - 1]["test"]["L_tot"] for n in epochs_done]
        label = f"gap between the two, last {upper[-1] - lower[-1]:.1f} nats"
        gap = plots.Band(label, epochs_done, lower, upper, plots.COLOURS[0])
    return plots.draw_curves(curves.values(), gap, "epochs", "$L_{tot}$, nats per image")


def draw_sanity_check(shown):
    """One image of each digit, its code, and what the code decodes to."""
    one_of_each = slice(None, None, 10)
    return plots.draw_image_code_image(
        shown.digits.x_shown.cpu().numpy()[one_of_each],
        shown.final["shown_codes"][one_of_each],
        shown.final["shown_images"][one_of_each],
    )


def draw_manifold(shown):
    """What the decoder makes of a grid of codes, on the axes of the scatter."""
    return plots.draw_decoded_plane(shown.model.decoder.decode_images, shown.plane)


def draw_explorer(shown):
    """A page with the map, the model and the last test images; for models with two latents."""
    if shown.model.latent_dim != 2:
        return None
    weights = shown.model.state_dict()
    return explorer.page_bytes(
        {name: tensor.cpu().numpy() for name, tensor in weights.items()},
        shown.digits.last_x_test.cpu().numpy(),
        shown.final["last_codes"],
        shown.digits.last_test_labels,
        explorer_settings(shown),
    )


def explorer_settings(shown):
    """What `explorer.page_bytes` needs to know of the model and the run."""
    digits = shown.digits
    networks = shown.model.page_settings()
    kind = "plain" if networks["kind"] == "AutoEncoder" else "variational"
    epochs = "1 epoch" if shown.epochs_done == 1 else f"{shown.epochs_done} epochs"
    shown_count = len(digits.last_x_test)
    all_count = len(digits.x_test)
    return {
        **networks,
        "reach": shown.plane.reach,
        "about": (
            f"This is a {kind} auto-encoder with two latent variables, trained on "
            f"{len(digits.x_train):,} images for {epochs}."
        ),
        "images_name": f"the last {shown_count:,} of {all_count:,} {digits.test_name} images",
        "mean_loss": shown.log[shown.epochs_done - 1]["test"]["L_tot"],
        "worst_first": worst_first(shown),
    }


def worst_first(shown):
    """The indices of the last test images, those first of which the encoder loses most.

    What it loses is how far L_tot is above -log p(x), which no Gaussian can beat. A plain
    AutoEncoder has no log p(x); there L_tot alone counts.
    """
    x = shown.digits.last_x_test
    generator = torch.Generator(x.device).manual_seed(0)
    likelihood, divergence = shown.model.mean_elbo(x, generator=generator)
    excess = divergence - likelihood
    if shown.last_log_p_x is not None:
        excess += shown.last_log_p_x
    return excess.argsort(descending=True).tolist()


# The files in figures/: {name: function of a PictureData}. If one is only for some models, its
# function returns None for the others.
FIGURES = {
    "scatter_epochs.png": draw_scatter_epochs,
    "reconstructions.png": draw_reconstructions,
    "loss.png": draw_loss,
    "sanity_check.png": draw_sanity_check,
    "manifold.png": draw_manifold,
    "explorer.html": draw_explorer,
}
