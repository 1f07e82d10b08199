"""Methods: of an instance, of a class, static, inherited, and a property."""
from _expected import Expected

COUNT = 300


class Base:
    def inherited(self, size):
        return "x" * size  # at: inherited


class Shelf(Base):
    def instance(self, size):
        return "x" * size  # at: instance

    @classmethod
    def of_class(cls, size):
        return "x" * size  # at: class

    @staticmethod
    def static(size):
        return "x" * size  # at: static

    @property
    def computed(self):
        return "x" * size  # at: property

    def fill(self, kept):
        for i in range(COUNT):
            kept[0][i] = self.instance(100)  # at: call instance
            kept[1][i] = self.of_class(101)  # at: call class
            kept[2][i] = self.static(102)  # at: call static
            kept[3][i] = self.inherited(103)  # at: call inherited
            kept[4][i] = self.computed  # at: call property


size = 104
kept = [[None] * COUNT for _ in range(5)]
Shelf().fill(kept)

expected = Expected(__file__)
for (mark, function), made in zip(
    [
        ("instance", "Shelf.instance"),
        ("class", "Shelf.of_class"),
        ("static", "Shelf.static"),
        ("inherited", "Base.inherited"),
        ("property", "Shelf.computed"),
    ],
    kept,
):
    expected.stack([("Shelf.fill", "call " + mark), (function, mark)], COUNT, made[0])
expected.print()
