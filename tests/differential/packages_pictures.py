"""Packages that draw, and read and write pictures."""

from differential.programs import program


@program(group="pictures")
def matplotlib_backend_by_variable():
    import os

    os.environ["MPLBACKEND"] = "svg"
    import matplotlib

    return matplotlib.get_backend()


@program(group="pictures")
def matplotlib_backend_by_use():
    import matplotlib

    matplotlib.use("pdf")
    import matplotlib.pyplot

    return [matplotlib.get_backend(), matplotlib.pyplot.get_backend()]


@program(group="pictures", env={"MPLBACKEND": "ps"})
def matplotlib_backend_of_the_request():
    import matplotlib.pyplot

    return matplotlib.pyplot.get_backend()


@program(group="pictures")
def matplotlib_picture(scratch):
    import hashlib
    import os

    import matplotlib.pyplot

    path = os.path.join(scratch, "a.png")
    figure, axes = matplotlib.pyplot.subplots(figsize=(2, 2), dpi=50)
    axes.plot([1, 3, 2])
    axes.set_title("title")
    figure.savefig(path, metadata={"Software": None})
    with open(path, "rb") as file:
        data = file.read()
    os.remove(path)
    return [len(data), hashlib.sha256(data).hexdigest(), matplotlib.pyplot.get_fignums()]


@program(group="pictures")
def matplotlib_parameters_left_alone():
    import matplotlib

    names = ("figure.dpi", "lines.linewidth", "axes.grid", "font.size")
    return {name: matplotlib.rcParams[name] for name in names}


@program(group="pictures")
def seaborn_theme():
    import matplotlib
    import seaborn

    seaborn.set_theme(style="whitegrid")
    return [matplotlib.rcParams["axes.grid"], len(seaborn.color_palette("deep"))]


@program(group="pictures")
def seaborn_picture():
    import io

    import seaborn

    axes = seaborn.barplot(x=["a", "b"], y=[1, 2], errorbar=None)
    out = io.BytesIO()
    axes.figure.savefig(out, format="png", dpi=40)
    return [len(out.getvalue()) > 500, [patch.get_height() for patch in axes.patches][:2]]


@program(group="pictures")
def plotly_figure():
    import plotly.graph_objects

    figure = plotly.graph_objects.Figure(plotly.graph_objects.Scatter(x=[1, 2], y=[3, 4]))
    return [figure.to_dict()["data"][0]["y"], len(figure.to_json()) > 100]


@program(group="pictures", fresh=("id",))
def plotly_page():
    import re

    import plotly.graph_objects

    figure = plotly.graph_objects.Figure(plotly.graph_objects.Bar(x=[1], y=[2]))
    page = figure.to_html(include_plotlyjs=False, full_html=False)
    return {"id": re.search(r'id="([0-9a-f-]{36})"', page)[1]}


@program(group="pictures")
def bokeh_document():
    import bokeh.embed
    import bokeh.plotting

    plot = bokeh.plotting.figure(width=200, height=200)
    plot.line([1, 2], [3, 4])
    return sorted(bokeh.embed.json_item(plot))


@program(group="pictures")
def altair_chart():
    import altair

    data = altair.Data(values=[{"a": 1, "b": 2}])
    chart = altair.Chart(data).mark_bar().encode(x="a:Q", y="b:Q")
    return [chart.to_dict()["mark"], chart.to_dict()["encoding"]["x"]]


@program(group="pictures")
def pillow_picture():
    import hashlib

    from PIL import Image, ImageDraw, ImageFilter

    image = Image.new("RGB", (32, 32), "navy")
    ImageDraw.Draw(image).ellipse((4, 4, 28, 28), fill="white")
    image = image.filter(ImageFilter.GaussianBlur(2)).resize((8, 8))
    return [image.size, hashlib.sha256(image.tobytes()).hexdigest()]


@program(group="pictures")
def pillow_formats():
    import io

    from PIL import Image

    sizes = {}
    for form in ("PNG", "JPEG", "WEBP", "GIF"):
        out = io.BytesIO()
        Image.new("RGB", (16, 16), "red").save(out, form)
        sizes[form] = [len(out.getvalue()), Image.open(out).size]
    return sizes


@program(group="pictures")
def imageio_round_trip():
    import imageio.v3
    import numpy

    pixels = numpy.arange(48, dtype="uint8").reshape(4, 4, 3)
    data = imageio.v3.imwrite("<bytes>", pixels, extension=".png")
    return bool((imageio.v3.imread(data) == pixels).all())


@program(group="pictures")
def skimage_edges():
    import numpy
    import skimage.filters
    import skimage.measure

    image = numpy.zeros((20, 20))
    image[5:10, 5:10] = image[12:15, 12:18] = 1
    edges = skimage.filters.sobel(image)
    return [int(skimage.measure.label(image).max()), round(float(edges.sum()), 6)]


@program(group="pictures")
def opencv_resize():
    import cv2
    import numpy

    pixels = numpy.arange(100, dtype="uint8").reshape(10, 10)
    small = cv2.resize(pixels, (5, 5), interpolation=cv2.INTER_AREA)
    return [small.tolist(), int(cv2.Canny(pixels, 10, 50).sum())]


@program(group="pictures")
def opencv_threads():
    import cv2
    import numpy

    pixels = numpy.arange(10**6, dtype="uint8").reshape(1000, 1000)
    return [cv2.getNumThreads(), int(cv2.GaussianBlur(pixels, (9, 9), 3).sum())]


@program(group="pictures")
def shapely_areas():
    import shapely

    circle = shapely.Point(0, 0).buffer(1)
    return [round(circle.area, 6), round(circle.intersection(shapely.box(0, 0, 1, 1)).area, 6)]


@program(group="pictures")
def pygame_greeting():
    """It prints when it is imported, unless a variable forbids that."""
    import pygame

    return [pygame.Rect(1, 2, 3, 4).center, pygame.get_init()]


@program(group="pictures")
def pygame_without_its_greeting():
    import os

    os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"
    import pygame

    return pygame.Vector2(3, 4).length()
