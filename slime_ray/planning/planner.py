"""Plans an experiment: finds out what its estimate needs, and makes it."""

from slime_ray.config.experiment import Experiment
from slime_ray.planning.estimate import EstimateInputs, estimate, material_key, shape_key
from slime_ray.planning.material import DataAssumptions, Material, Sample, find_material, made_up
from slime_ray.planning.plan import Cluster, Plan
from slime_ray.planning.prices import Gpu, GpuPrices, load_prices
from slime_ray.planning.shapes import ModelShape, find_shape
from slime_ray.planning.speed import MeasuredRates
from slime_ray.planning.trials import extremes, groups_of


class Planner:
    """What is known of an experiment's data and models, read once: for a plan, for a probe, and for the plan after it.

    sample: of the data, for a probe; None where it was not read. Raises InputError for data or a model of which too
    little is known here.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        given: DataAssumptions = DataAssumptions(),  # noqa: B008
        prices: GpuPrices | None = None,
    ):
        self.experiment = experiment
        self.prices = prices or load_prices()
        self.sample: Sample | None = None
        self.materials: dict[str, Material] = {}
        self.shapes: dict[str, ModelShape] = {}
        every = [settings for group in groups_of(experiment) for settings in group.settings]
        for settings in [experiment.settings, *every, *extremes(experiment)]:
            if (key := material_key(settings)) not in self.materials:
                self.materials[key], sample = find_material(settings, given)
                self.sample = self.sample or sample
            if (key := shape_key(settings)) not in self.shapes:
                self.shapes[key] = find_shape(settings.model)

    def probed_sample(self) -> Sample:
        """Of the data, or of random tokens where it was not read."""
        settings = self.experiment.settings
        shape = self.shapes[shape_key(settings)]
        return self.sample or made_up(
            self.materials[material_key(settings)], shape.vocabulary, settings.evaluation.decoding.batch
        )

    def plan(self, cluster: Cluster, measured: MeasuredRates | None = None) -> Plan:
        """The plan on a cluster, by the formula or as a probe measured it."""
        uses = self.experiment.resources.gpu_per_worker > 0
        gpu: Gpu | None = self.prices.find(cluster.gpu) if uses and cluster.gpu else None
        return estimate(
            EstimateInputs(
                experiment=self.experiment,
                cluster=cluster,
                materials=self.materials,
                shapes=self.shapes,
                gpu=gpu,
                prices=self.prices,
                measured=measured,
            )
        )


def plan_experiment(
    experiment: Experiment,
    *,
    cluster: Cluster,
    given: DataAssumptions = DataAssumptions(),  # noqa: B008
    prices: GpuPrices | None = None,
    measured: MeasuredRates | None = None,
) -> Plan:
    """What the experiment takes on a cluster. Nothing is started, and nothing is downloaded.

    given: of data that is not at hand. prices: None is the table that ships. measured: what a probe found; without it
    times follow from the formula, on GPUs of the table alone. Raises InputError where too little is known; what does
    not fit stands in the plan's refusals.
    """
    return Planner(experiment, given=given, prices=prices).plan(cluster, measured)
