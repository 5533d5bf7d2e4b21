"""Random numbers, identities and times: of each process its own, in a call as in a script."""

from differential.programs import EVERYTHING, program, program_text


@program(group="base", fresh=(EVERYTHING,))
def random_of_stdlib():
    import random

    return [random.random(), random.getrandbits(64), random.Random().random()]


@program(group="base", fresh=(EVERYTHING,))
def random_of_numpy():
    import numpy

    return [float(numpy.random.rand()), int(numpy.random.randint(10**15))]


@program(group="base", fresh=(EVERYTHING,))
def random_generator_of_numpy():
    import numpy

    generator = numpy.random.default_rng()
    return [float(generator.random()), generator.integers(10**15, size=3).tolist()]


@program(group="base", fresh=(EVERYTHING,))
def random_of_the_kernel():
    import os
    import secrets
    import uuid

    return [str(uuid.uuid4()), str(uuid.uuid1()), secrets.token_hex(8), os.urandom(8).hex()]


@program(group="base", fresh=("name",))
def random_names_of_temporary_files():
    import os
    import tempfile

    descriptor, path = tempfile.mkstemp()
    os.close(descriptor)
    os.remove(path)
    return {"name": os.path.basename(path)}


@program(group="base", fresh=("order",))
def random_order():
    import random

    import numpy

    numbers = list(range(1000))
    random.shuffle(numbers)
    permuted = numpy.random.permutation(1000).tolist()
    return {"order": [str(numbers[:20]), str(permuted[:20])], "sum": sum(numbers + permuted)}


@program(group="base")
def random_seeded_by_the_function():
    import random

    import numpy

    random.seed(1)
    numpy.random.seed(2)
    return [
        random.random(),
        float(numpy.random.rand()),
        float(numpy.random.default_rng(3).random()),
    ]


@program(group="own")
def random_seeded_before_an_import_that_draws():
    import random

    random.seed(1)
    import draws

    return [draws.IDENTITY, random.random()]


@program(group="own", fresh=(EVERYTHING,))
def random_drawn_at_import():
    import draws

    return draws.IDENTITY


@program(group="own", fresh=("identities", "drawn"))
def identity_of_a_process_made_at_import():
    import time

    before = time.time()
    import keeps_random

    return {
        "identities": [
            keeps_random.SESSION,
            keeps_random.TOKEN,
            keeps_random.SALT,
            keeps_random.PICKED,
        ],
        "drawn": [
            keeps_random.RNG.random(),
            float(keeps_random.GENERATOR.random()),
            float(keeps_random.STATE.rand()),
        ],
        # It may have been imported for this call, just before the function began.
        "started in this call": keeps_random.STARTED >= before - 1,
    }


@program(group="own", fresh=("pid",))
def pid_read_at_import():
    import os

    import keeps_random

    return {"pid": keeps_random.PID, "ours": keeps_random.PID == os.getpid()}


program_text(
    "identity_in_a_shipped_module",
    """
    def run():
        import shipped_session

        return [shipped_session.SESSION, shipped_session.RNG.random()]
    """,
    group="base",
    fresh=(EVERYTHING,),
    modules={
        "shipped_session.py": "import random\nimport uuid\n\n"
        "SESSION = str(uuid.uuid4())\nRNG = random.Random()\n"
    },
)

program_text(
    "identity_at_the_top_of_the_source",
    """
    import uuid

    import numpy

    SESSION = str(uuid.uuid4())
    GENERATOR = numpy.random.default_rng()


    def run():
        return [SESSION, float(GENERATOR.random())]
    """,
    group="base",
    fresh=(EVERYTHING,),
)


program_text(
    "random_in_forked_children",
    """
    import os

    import numpy


    def drawn_in_child():
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.write(writer, repr(float(numpy.random.rand())).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(writer)
        with open(reader) as file:
            return file.read()


    def run():
        # numpy imports its generators when they are first asked for: here, in each child.
        first = [drawn_in_child(), drawn_in_child()]
        # Now children have the state of their parent, and draw the same.
        numpy.random.rand()
        later = [drawn_in_child(), drawn_in_child()]
        return {
            "drawn": [*first, later[0]],
            "own generator": first[0] != first[1],
            "inherited generator": later[0] == later[1],
        }
    """,
    group="base",
    fresh=("drawn",),
)


@program(group="base", like="cold", fields={"seed": 7}, forms=("cold", "warm", "many", "parallel"))
def random_with_the_seed_of_the_request():
    import random

    import numpy

    return [random.random(), float(numpy.random.rand())]


@program(group="base", like="cold", fields={"seed": 8}, forms=("cold", "warm", "many", "parallel"))
def random_with_a_seed_and_without_numpy():
    import random

    return [random.random(), random.sample(range(1000), 3)]
