"""eval."""

import re
import sys

from mnist_transformer.commands.common import PROG, Data, Device, ModelName
from mnist_transformer.utils.terminal import complain, say, screen, stages


def evaluate(
    model: ModelName,
    data: Data = None,
    device: Device = None,
    num_samples: int = 10_000,
    record: bool = True,
) -> None:
    """Measure a model as the README's tables do: likelihood, drawn images, copies, speed.

    Without a shipped judge for its data set, drawn images and copies are not measured.

    Args:
        model: A shipped model, a checkpoint or a training run's folder.
        num_samples: Images to draw for each of three seeds.
        record: Append the figures to results/ledger.jsonl and save a sheet of samples.
    """
    from mnist_transformer.evaluation import ledger, protocol
    from mnist_transformer.models import loading
    from mnist_transformer.models.base import GenerativeModel, Judge
    from mnist_transformer.recipes import RECIPES
    from mnist_transformer.training.info import read_info
    from mnist_transformer.training.records import MAX_CLASSES
    from mnist_transformer.utils import images

    if record:
        ledger.whole(ledger.results_folder() / "ledger.jsonl")
    path = loading.find_weights(model)
    training = read_info(path)
    subject = loading.load_model(path, device)
    samples = protocol.Samples(num_samples)
    protocol.check_measurable(subject, samples)
    recipe = RECIPES.get(training.recipe)
    dataset = protocol.load_data(subject, recipe, data)
    if dataset.spec.judge not in loading.shipped() and not isinstance(subject, Judge):
        complain(f"{dataset.spec.name} has no shipped judge: likelihood and speed are all there is")
    with stages() as report:
        metrics = protocol.evaluate(subject, dataset, samples, recipe=recipe, report=report)
    screen.print_json(data=metrics)
    if not record:
        return
    if training.curve is not None:
        metrics["curve"] = training.curve
    row = ledger.make_row(
        training.recipe,
        metrics,
        dataset=dataset.spec.name,
        parameters=subject.num_parameters,
        device=str(subject.device),
        exact=None if subject.likelihood is None else subject.likelihood == "exact",
        images_seen=training.images_seen,
        seconds=training.seconds,
        command=ledger.clean_command([PROG, *sys.argv[1:]]),
    )
    say(f"recorded in {ledger.append(row)}")
    if isinstance(subject, GenerativeModel):
        folder = re.sub(r"^\.|[^\w.-]", "-", training.recipe)  # may be any text
        sheet = ledger.results_folder() / folder / "samples.png"
        labels = [x for x in range(min(subject.num_classes, MAX_CLASSES)) for _ in range(10)]
        drawn = subject.sample(labels, range(len(labels)))
        images.save_png(images.enlarge(images.grid(drawn, columns=10)), sheet)
        say(f"saved {sheet}")
