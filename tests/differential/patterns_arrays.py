"""What numpy does, with its options as they are and changed."""

from differential.programs import program


@program(group="base")
def arrays_and_linear_algebra():
    import numpy

    matrix = numpy.arange(9.0).reshape(3, 3) + numpy.eye(3)
    solved = numpy.linalg.solve(matrix, numpy.ones(3))
    return [solved.round(9).tolist(), float(numpy.linalg.det(matrix).round(9)), str(matrix.dtype)]


@program(group="base")
def options_of_arrays_left_alone():
    import numpy

    return [numpy.geterr(), repr(numpy.array([1 / 3])), numpy.get_printoptions()["precision"]]


@program(group="base")
def options_of_arrays_changed():
    import numpy

    numpy.seterr(all="raise")
    numpy.set_printoptions(precision=2)
    try:
        numpy.array([1.0]) / 0
    except FloatingPointError as error:
        return [str(error), repr(numpy.array([1 / 3]))]
    return "no error"


@program(group="base")
def warning_of_arrays():
    import numpy

    return repr(numpy.log(numpy.array([0.0])))


@program(group="base")
def pickles_of_arrays():
    import pickle

    import numpy

    copy = pickle.loads(pickle.dumps({"a": numpy.arange(4), "f": numpy.sum}))
    return [copy["a"].tolist(), copy["f"] is numpy.sum, type(copy["a"]) is numpy.ndarray]
