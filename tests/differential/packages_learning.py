"""Packages that fit, solve and prove."""

from differential.programs import program, program_text

program_text(
    "joblib_with_a_shipped_module",
    """
    def run():
        import joblib
        import shipped_helper

        jobs = (joblib.delayed(shipped_helper.double)(number) for number in range(4))
        return joblib.Parallel(n_jobs=2)(jobs)
    """,
    group="learning",
    modules={"shipped_helper.py": "def double(value):\n    return value * 2\n"},
)


@program(group="learning")
def sklearn_regression():
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1])
    return [model.predict([[0.2], [2.9]]).tolist(), round(float(model.coef_[0][0]), 4)]


@program(group="learning")
def sklearn_forest_with_a_seed():
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier

    data = load_iris()
    model = RandomForestClassifier(10, random_state=3).fit(data.data, data.target)
    return [model.score(data.data, data.target), model.predict_proba(data.data[:1]).tolist()]


@program(group="learning", fresh=("order",))
def sklearn_shuffle():
    from sklearn.utils import shuffle

    return {"order": str(shuffle(list(range(100)))), "seeded": shuffle([1, 2, 3], random_state=1)}


@program(group="learning")
def sklearn_with_processes():
    from sklearn.model_selection import cross_val_score
    from sklearn.tree import DecisionTreeClassifier

    features = [[n % 7, n % 5] for n in range(60)]
    scores = cross_val_score(
        DecisionTreeClassifier(random_state=0), features, [n % 2 for n in range(60)], cv=3, n_jobs=2
    )
    return [round(float(score), 6) for score in scores]


@program(group="learning")
def statsmodels_regression():
    import statsmodels.api

    exog = statsmodels.api.add_constant([1.0, 2.0, 3.0, 4.0])
    return [round(value, 6) for value in statsmodels.api.OLS([1, 3, 5, 7.5], exog).fit().params]


@program(group="learning")
def lightgbm_training():
    import lightgbm
    import numpy

    numbers = numpy.arange(90.0)
    data = lightgbm.Dataset((numbers % 9).reshape(-1, 1), numbers % 2)
    parameters = {"verbose": -1, "num_threads": 2, "seed": 1, "deterministic": True}
    model = lightgbm.train(parameters, data, 3)
    return round(float(model.predict(numpy.array([[3.0]]))[0]), 6)


@program(group="learning")
def xgboost_training():
    import numpy
    import xgboost

    features = numpy.arange(60.0).reshape(30, 2)
    model = xgboost.XGBRegressor(n_estimators=3, n_jobs=2, random_state=1)
    model.fit(features, features[:, 0] * 2)
    return [round(float(value), 3) for value in model.predict(features[:2])]


@program(group="learning")
def joblib_in_threads():
    import joblib

    jobs = (joblib.delayed(pow)(n, 2) for n in range(5))
    return joblib.Parallel(n_jobs=2, prefer="threads")(jobs)


@program(group="learning")
def joblib_in_processes():
    import joblib

    jobs = (joblib.delayed(pow)(n, 2) for n in range(5))
    return joblib.Parallel(n_jobs=2)(jobs)


@program(group="learning")
def joblib_cache(scratch):
    import os

    import joblib

    path = os.path.join(scratch, "a.joblib")
    joblib.dump({"a": [1, 2]}, path)
    loaded = joblib.load(path)
    os.remove(path)
    return [loaded, joblib.hash([1, 2, "x"])]


@program(group="learning")
def networkx_paths():
    import networkx

    graph = networkx.path_graph(5)
    graph.add_edge(0, 3)
    return [networkx.shortest_path(graph, 0, 4), networkx.diameter(graph)]


@program(group="learning", fresh=("graph",))
def networkx_random_graph():
    import networkx

    graph = networkx.gnp_random_graph(40, 0.5)
    seeded = networkx.gnp_random_graph(20, 0.5, seed=1)
    return {"graph": str(sorted(graph.edges)), "seeded": seeded.number_of_edges()}


@program(group="learning")
def sympy_integral():
    import sympy

    x = sympy.Symbol("x")
    return [str(sympy.integrate(x * sympy.sin(x), x)), str(sympy.solve(x**2 - 2, x))]


@program(group="learning")
def numba_compiled():
    import numba

    @numba.njit
    def total(number):
        result = 0
        for value in range(number):
            result += value
        return result

    return total(1000)


@program(group="learning", fresh=("drawn",))
def numba_random():
    import numba
    import numpy

    @numba.njit
    def draw():
        return numpy.random.random()

    return {"drawn": draw()}


@program(group="learning")
def nltk_stems():
    from nltk.stem import PorterStemmer
    from nltk.tokenize import wordpunct_tokenize

    words = wordpunct_tokenize("Running dogs are happily runners.")
    return [PorterStemmer().stem(word) for word in words]


@program(group="learning")
def gensim_dictionary():
    from gensim.corpora import Dictionary

    dictionary = Dictionary([["a", "b"], ["b", "c"]])
    return [sorted(dictionary.token2id), dictionary.doc2bow(["b", "b"])]


@program(group="learning")
def onnxruntime_providers():
    import onnxruntime

    options = onnxruntime.SessionOptions()
    return [onnxruntime.get_available_providers(), options.intra_op_num_threads]
