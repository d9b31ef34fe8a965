"""The history of a training: the metrics of each epoch, and all that --resume needs."""

import io
from dataclasses import dataclass, field

import torch

from lib.errors import InputError, as_input_error


@dataclass
class History:
    """What training leaves besides the weights of the last epoch."""

    # The metrics of each epoch, {"train", "test" and others: {"L_tot" and others: nats per image}}.
    log: list = field(default_factory=list)
    # What the pictures show of the model: {how many epochs were done: {name: tensor}}.
    snapshots: dict = field(default_factory=dict)
    # {name: tensor}, of the best epoch.
    best_weights: dict = field(default_factory=dict)

    @property
    def best_epoch(self):
        """The epoch, from 0, with the lowest L_tot on held-out images; without any, the last."""
        epochs = range(len(self.log))
        if "validation" not in self.log[-1]:
            return epochs[-1]
        return min(epochs, key=lambda epoch: self.log[epoch]["validation"]["L_tot"])

    @property
    def last_is_best(self):
        return self.best_epoch == len(self.log) - 1

    def is_finished(self, epochs, patience):
        """Whether all epochs are done, or the last `patience` of them were no better."""
        if len(self.log) >= epochs:
            return True
        if patience is None or not self.log:
            return False
        last_epoch = len(self.log) - 1
        return last_epoch - self.best_epoch >= patience

    def add_epoch(self, metrics, model):
        """Record an epoch's metrics, and the model's weights if they are the best so far."""
        self.log.append(metrics)
        if self.last_is_best:
            self.best_weights = {name: w.clone() for name, w in model.state_dict().items()}


def is_snapshot_time(epochs_done):
    """True after 1, 2, 5, 10, 20, 50, ... epochs, as a model changes ever more slowly."""
    while epochs_done % 10 == 0:
        epochs_done //= 10
    return epochs_done in (1, 2, 5)


def resume_bytes(settings, model, optimizers, history):
    """All that `restore` needs, in one file: it fits together whenever the process is killed.

    `settings` is a dict of what must not change before a run is resumed.
    """
    buffer = io.BytesIO()
    contents = {
        "settings": settings,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "history": vars(history),
    }
    torch.save(contents, buffer)
    return buffer.getvalue()


def restore(path, settings, model, optimizers):
    """Put weights and optimizers back as they were after the last epoch; return the `History`.

    Raises InputError: the file is damaged, or of a run with other settings.
    """
    begin_anew = "leave out --resume to begin anew"
    with as_input_error(path, "cannot be resumed from", begin_anew):
        contents = torch.load(path, map_location="cpu", weights_only=True)  # it runs no code
        for name, value in settings.items():
            if contents["settings"][name] != value:
                flag = "--" + name.replace("_", "-")
                raise InputError(
                    f"--resume: {path} was made with another {flag}; give that, or {begin_anew}"
                )
        model.load_state_dict(contents["model"])
        for optimizer, state in zip(optimizers, contents["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        return History(**contents["history"])
