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
        return "x" * 104  # at: property

    def fill(self, kept):
        for i in range(0, len(kept), 5):
            kept[i] = self.instance(100)  # at: call instance
            kept[i + 1] = self.of_class(101)  # at: call class
            kept[i + 2] = self.static(102)  # at: call static
            kept[i + 3] = self.inherited(103)  # at: call inherited
            kept[i + 4] = self.computed * repeat  # at: call property


repeat = 2
kept = [None] * (5 * COUNT)
Shelf().fill(kept)

expected = Expected(__file__)
for index, (mark, function) in enumerate(
    [
        ("instance", "Shelf.instance"),
        ("class", "Shelf.of_class"),
        ("static", "Shelf.static"),
        ("inherited", "Base.inherited"),
    ]
):
    expected.stack([("Shelf.fill", "call " + mark), (function, mark)], COUNT, kept[index])
expected.stack([("Shelf.fill", "call property")], COUNT, kept[4])
expected.print()
