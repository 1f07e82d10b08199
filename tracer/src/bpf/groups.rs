//! The probes of each image by group, so that one group can be taken off and put back while the others stand.
//!
//! Apart from `tracer`, which knows tables and counters. Invariant: a group that does not stand has no probe in
//! any image; an image that is attached later gets what stands then.

use tracer_ebpf::site::group::GROUPS;

use super::{
    BpfError,
    links::{self, Link, Point, Programs},
};
use crate::units::ImageId;

/// Whether groups can be taken off on their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouping {
    /// Each can; that takes more links.
    Apart,
    /// All stand and fall together.
    Together,
}

/// The probes of one image.
struct Image {
    /// A path that leads to its file for as long as the tracer lives.
    path: String,
    id: ImageId,
    /// Each with its group.
    points: Vec<(usize, Point)>,
    links: [Vec<Link>; GROUPS],
}

/// All images' probes.
pub(super) struct Groups {
    images: Vec<Image>,
    /// Which of them stand.
    stand: [bool; GROUPS],
    grouping: Grouping,
}

impl Groups {
    /// No image yet; all groups stand but these.
    pub(super) fn without(off: &[u32], grouping: Grouping) -> Self {
        let mut stand = [true; GROUPS];
        for &group in off {
            if let Some(stand) = stand.get_mut(place(group)) {
                *stand = false;
            }
        }
        Self {
            images: Vec::new(),
            stand,
            grouping,
        }
    }

    /// Adds an image, and attaches those of its points whose group stands.
    pub(super) fn add(
        &mut self,
        programs: &Programs,
        path: &str,
        id: ImageId,
        points: Vec<(u32, Point)>,
    ) -> Result<(), BpfError> {
        let mut image = Image {
            path: path.to_owned(),
            id,
            points: points
                .into_iter()
                .map(|(group, point)| match self.grouping {
                    Grouping::Apart => (place(group), point),
                    Grouping::Together => (0, point),
                })
                .collect(),
            links: Default::default(),
        };
        for (group, stands) in self.stand.iter().enumerate() {
            if *stands {
                image.attach(programs, group)?;
            }
        }
        self.images.push(image);
        Ok(())
    }

    /// Puts a group in place, in the images that are `wanted` at once. One image that fails does not keep it from the others;
    /// the first error is returned.
    pub(super) fn put_on(
        &mut self,
        programs: &Programs,
        group: u32,
        wanted: impl Fn(ImageId) -> bool,
    ) -> Result<(), BpfError> {
        let group = place(group);
        if let Some(stand) = self.stand.get_mut(group) {
            *stand = true;
        }
        let mut first = Ok(());
        for image in self.images.iter_mut().filter(|image| wanted(image.id)) {
            let done = image.attach(programs, group);
            first = first.and(done);
        }
        first
    }

    /// Puts a group that stands in place where it was not wanted at once.
    pub(super) fn complete(&mut self, programs: &Programs, group: u32) -> Result<(), BpfError> {
        if self.stand.get(place(group)) == Some(&true) {
            return self.put_on(programs, group, |_| true);
        }
        Ok(())
    }

    /// Takes a group off in all images.
    pub(super) fn take_off(&mut self, group: u32) {
        let group = place(group);
        if let Some(stand) = self.stand.get_mut(group) {
            *stand = false;
        }
        let of_group = self
            .images
            .iter_mut()
            .filter_map(|image| image.links.get_mut(group));
        links::close(of_group.flat_map(std::mem::take).collect());
    }

    /// Takes everything off.
    pub(super) fn clear(&mut self) {
        let images = std::mem::take(&mut self.images);
        links::close(
            images
                .into_iter()
                .flat_map(|image| image.links)
                .flatten()
                .collect(),
        );
    }
}

impl Image {
    fn attach(&mut self, programs: &Programs, group: usize) -> Result<(), BpfError> {
        let of_group = self.points.iter().filter(|(of, _)| *of == group);
        let points: Vec<Point> = of_group.map(|(_, point)| *point).collect();
        let Some(links) = self.links.get_mut(group) else {
            return Ok(());
        };
        if links.is_empty() && !points.is_empty() {
            *links = programs.attach(&self.path, self.id, &points)?;
        }
        Ok(())
    }
}

/// A group's place in the tables; the kernel side masks it in the same way.
fn place(group: u32) -> usize {
    usize::try_from(group).unwrap_or_default() & (GROUPS - 1)
}
