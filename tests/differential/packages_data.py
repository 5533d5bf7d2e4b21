"""Packages for tables, arrays and files of data."""

from differential.programs import program


@program(group="data")
def pandas_groups():
    import pandas

    frame = pandas.DataFrame({"a": ["x", "y", "x"], "b": [1.5, 2.0, 3.25]})
    summary = frame.groupby("a")["b"].agg(["sum", "mean"])
    return [summary.to_dict(), str(frame.dtypes["b"]), frame.to_csv(index=False)]


@program(group="data")
def pandas_dates():
    import pandas

    days = pandas.date_range("2024-02-28", periods=3, tz="Europe/Paris")
    return [str(days[-1]), pandas.Series(range(3), index=days).resample("2D").sum().tolist()]


@program(group="data")
def pandas_options_left_alone():
    import pandas

    return [pandas.get_option("display.max_rows"), repr(pandas.DataFrame({"a": [1.23456789]}))]


@program(group="data")
def pandas_options_changed():
    import pandas

    pandas.set_option("display.precision", 2)
    pandas.set_option("display.max_rows", 5)
    return [pandas.get_option("display.max_rows"), repr(pandas.DataFrame({"a": [1.23456789]}))]


@program(group="data", fresh=("sample",))
def pandas_samples():
    import pandas

    frame = pandas.DataFrame({"a": range(10**4)})
    seeded = frame.sample(3, random_state=1)["a"].tolist()
    return {"sample": str(frame.sample(5)["a"].tolist()), "seeded": seeded}


@program(group="data")
def pandas_with_pyarrow(scratch):
    import os

    import pandas

    path = os.path.join(scratch, "t.parquet")
    pandas.DataFrame({"a": [1, 2], "b": ["x", None]}).to_parquet(path)
    read = pandas.read_parquet(path)
    os.remove(path)
    return [read["a"].sum().item(), read["b"].isna().tolist()]


@program(group="data")
def pyarrow_compute():
    import pyarrow
    import pyarrow.compute

    table = pyarrow.table({"a": [1, 2, 3], "b": ["x", "y", "x"]})
    grouped = table.group_by("b").aggregate([("a", "sum")]).sort_by("b")
    return [pyarrow.compute.mean(table["a"]).as_py(), grouped.to_pydict(), str(table.schema)]


@program(group="data")
def pyarrow_threads():
    import pyarrow
    import pyarrow.compute

    array = pyarrow.array(range(10**5))
    chunked = pyarrow.chunked_array([array] * 4)
    return [pyarrow.cpu_count(), pyarrow.compute.sum(chunked).as_py()]


@program(group="data")
def scipy_optimize():
    import scipy.optimize

    found = scipy.optimize.minimize(lambda x: (x[0] - 3) ** 2 + x[1] ** 2, [0.0, 1.0])
    return [round(value, 4) for value in found.x.tolist()]


@program(group="data", fresh=("drawn",))
def scipy_statistics():
    import scipy.stats

    test = scipy.stats.ttest_ind([1, 2, 3, 4], [2, 3, 4, 9])
    return {"drawn": float(scipy.stats.norm.rvs()), "p": round(float(test.pvalue), 9)}


@program(group="data")
def scipy_sparse():
    import numpy
    import scipy.sparse
    import scipy.sparse.linalg

    matrix = scipy.sparse.csc_matrix(numpy.diag([1.0, 2.0, 4.0]))
    return scipy.sparse.linalg.spsolve(matrix, numpy.ones(3)).tolist()


@program(group="data")
def openpyxl_workbook(scratch):
    import os

    import openpyxl

    path = os.path.join(scratch, "b.xlsx")
    book = openpyxl.Workbook()
    book.active.append([1, "two"])
    book.save(path)
    cells = [[cell.value for cell in row] for row in openpyxl.load_workbook(path).active]
    os.remove(path)
    return cells


@program(group="data")
def xarray_means():
    import numpy
    import xarray

    data = xarray.DataArray(numpy.arange(6.0).reshape(2, 3), dims=("x", "y"))
    return [data.mean("y").values.tolist(), data.dims]


@program(group="data")
def duckdb_query():
    import duckdb

    query = "select i % 3 as k, sum(i) from range(10) t(i) group by k order by k"
    return duckdb.sql(query).fetchall()


@program(group="data")
def duckdb_over_pandas():
    import duckdb
    import pandas

    frame = pandas.DataFrame({"a": [1, 2, 3]})
    return [duckdb.sql("select sum(a) from frame").fetchall(), len(frame)]


@program(group="data")
def h5py_file(scratch):
    import os

    import h5py

    path = os.path.join(scratch, "f.h5")
    with h5py.File(path, "w") as file:
        file["a"] = [1, 2, 3]
    with h5py.File(path) as file:
        values = file["a"][:].tolist()
    os.remove(path)
    return values


@program(group="data")
def tables_file(scratch):
    import os

    import tables

    path = os.path.join(scratch, "t.h5")
    with tables.open_file(path, "w") as file:
        file.create_array("/", "a", [1, 2, 3])
    with tables.open_file(path) as file:
        values = file.root.a[:]
    os.remove(path)
    return values


@program(group="data")
def zarr_array():
    import numpy
    import zarr

    array = zarr.array(numpy.arange(10), chunks=(5,))
    return [int(array[3:6].sum()), list(array.chunks)]


@program(group="data")
def numexpr_expression():
    import numexpr
    import numpy

    values = numpy.arange(1000.0)
    return [float(numexpr.evaluate("sum(values * 2)")), numexpr.nthreads, len(values)]


@program(group="data")
def numexpr_threads_by_variable():
    import os

    os.environ["NUMEXPR_NUM_THREADS"] = "1"
    import numexpr

    return numexpr.nthreads


@program(group="data")
def bottleneck_median():
    import bottleneck
    import numpy

    return float(bottleneck.nanmedian(numpy.array([1.0, numpy.nan, 5.0, 2.0])))


@program(group="data")
def dask_array():
    import dask.array

    return float(dask.array.ones((100, 100), chunks=50).sum().compute())


@program(group="data")
def dask_with_processes():
    import dask
    import dask.bag

    with dask.config.set(scheduler="synchronous"):
        return dask.bag.from_sequence(range(6), npartitions=2).map(lambda n: n * n).sum().compute()


@program(group="data")
def fsspec_memory():
    import fsspec

    with fsspec.open("memory://f.txt", "w") as file:
        file.write("text")
    system = fsspec.filesystem("memory")
    return [system.cat("/f.txt").decode(), system.ls("/", detail=False)]


@program(group="data")
def arrays_after_fork():
    """Native threads that a forked process has to start anew."""
    import numpy
    import pyarrow
    import pyarrow.compute
    import scipy.linalg

    matrix = numpy.arange(250000.0).reshape(500, 500) / 1e5 + numpy.eye(500)
    product = matrix @ matrix
    lower = scipy.linalg.cholesky(product @ product.T + 1e3 * numpy.eye(500), lower=True)
    total = pyarrow.compute.sum(pyarrow.array(product.ravel())).as_py()
    return [round(total / 1e3, 3), lower.shape]
