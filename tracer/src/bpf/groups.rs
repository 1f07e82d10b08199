//! The probes of all images by group, so that one group can be taken off and put back while the others stand.
//!
//! Apart from `tracer`, which knows tables and counters. Invariant: a group that does not stand has no probe in any image; an
//! image that is attached later gets what stands then.

use std::time::Duration;

use tracer_ebpf::site::group::GROUPS;

use super::{
    BpfError, LinkKind,
    links::{self, FilePoints, Link, Point, Programs},
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

/// What can be probed in one image.
struct Image {
    /// A path that leads to its file for as long as the tracer lives.
    path: String,
    id: ImageId,
    points: [Vec<Point>; GROUPS],
    /// Groups that have their probes in place.
    has: [bool; GROUPS],
}

/// All images' probes.
pub(super) struct Groups {
    images: Vec<Image>,
    links: [Vec<Link>; GROUPS],
    /// Which of them stand.
    stand: [bool; GROUPS],
    grouping: Grouping,
    /// Images that are added wait to be attached together.
    waits: bool,
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
            links: Default::default(),
            stand,
            grouping,
            waits: false,
        }
    }

    /// Adds an image, and attaches those of its points whose group stands, unless images are gathered.
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
            points: Default::default(),
            has: [false; GROUPS],
        };
        for (group, point) in points {
            let group = match self.grouping {
                Grouping::Apart => place(group),
                Grouping::Together => 0,
            };
            if let Some(of_group) = image.points.get_mut(group) {
                of_group.push(point);
            }
        }
        self.images.push(image);
        if self.waits {
            return Ok(());
        }
        match self.attach_new(programs, |new| new == id).pop() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    /// From here on images that are added wait, if that is of use: [`Groups::attach_gathered`] attaches them.
    pub(super) fn gather(&mut self, kind: LinkKind) {
        self.waits = kind == LinkKind::PerPoint;
    }

    /// Attaches the images that wait. Those that cannot be attached are forgotten, and returned.
    pub(super) fn attach_gathered(&mut self, programs: &Programs) -> Vec<(ImageId, BpfError)> {
        if !std::mem::take(&mut self.waits) {
            return Vec::new();
        }
        self.attach_new(programs, |_| true)
    }

    /// Puts what stands in place in `wanted` images: in all at once, or else in one after the other, so that one that fails
    /// does not keep it from the others. Such a one has none of its probes, and is forgotten.
    fn attach_new(
        &mut self,
        programs: &Programs,
        wanted: impl Fn(ImageId) -> bool,
    ) -> Vec<(ImageId, BpfError)> {
        let stand: Vec<usize> = (0..GROUPS)
            .filter(|&group| self.stand.get(group) == Some(&true))
            .collect();
        let failed = self.attach(programs, &stand, wanted);
        self.images
            .retain(|image| failed.iter().all(|(id, _)| *id != image.id));
        failed
    }

    /// Puts groups in place in those `wanted` images that do not have them, in the same way; an image gets all of them or
    /// none.
    fn attach(
        &mut self,
        programs: &Programs,
        groups: &[usize],
        wanted: impl Fn(ImageId) -> bool,
    ) -> Vec<(ImageId, BpfError)> {
        let ids: Vec<ImageId> = self
            .images
            .iter()
            .map(|image| image.id)
            .filter(|id| wanted(*id))
            .collect();
        if self.attach_together(programs, groups, &ids).is_ok() {
            return Vec::new();
        }
        let one_by_one = ids.into_iter().filter_map(|id| {
            let done = self.attach_together(programs, groups, &[id]);
            done.err().map(|error| (id, error))
        });
        one_by_one.collect()
    }

    /// Puts groups in place in images, where they are not yet; all or nothing.
    fn attach_together(
        &mut self,
        programs: &Programs,
        groups: &[usize],
        ids: &[ImageId],
    ) -> Result<(), BpfError> {
        let mut made = Vec::new();
        for &group in groups {
            let missing = self
                .images
                .iter()
                .filter(|image| ids.contains(&image.id) && image.has.get(group) == Some(&false));
            let files: Vec<FilePoints<'_>> = missing
                .filter_map(|image| {
                    let points = image.points.get(group).filter(|points| !points.is_empty())?;
                    Some(FilePoints {
                        path: &image.path,
                        points,
                    })
                })
                .collect();
            made.push((group, programs.attach(&files)?));
        }
        for (group, links) in made {
            if let Some(of_group) = self.links.get_mut(group) {
                of_group.extend(links);
            }
            for image in self.images.iter_mut().filter(|image| ids.contains(&image.id)) {
                if let Some(has) = image.has.get_mut(group) {
                    *has = true;
                }
            }
        }
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
        match self.attach(programs, &[group], wanted).into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    /// Puts a group that stands in place where it was not wanted at once.
    pub(super) fn complete(&mut self, programs: &Programs, group: u32) -> Result<(), BpfError> {
        if self.stand.get(place(group)) == Some(&true) {
            return self.put_on(programs, group, |_| true);
        }
        Ok(())
    }

    /// Takes a group off in all images; the processor time that it took.
    pub(super) fn take_off(&mut self, group: u32) -> Duration {
        let group = place(group);
        if let Some(stand) = self.stand.get_mut(group) {
            *stand = false;
        }
        for image in &mut self.images {
            if let Some(has) = image.has.get_mut(group) {
                *has = false;
            }
        }
        let links = self.links.get_mut(group).map(std::mem::take);
        links::close(links.unwrap_or_default())
    }

    /// Takes everything off.
    pub(super) fn clear(&mut self) {
        self.images.clear();
        links::close(self.links.iter_mut().flat_map(std::mem::take).collect());
    }
}

/// A group's place in the tables; the kernel side masks it in the same way.
fn place(group: u32) -> usize {
    usize::try_from(group).unwrap_or_default() & (GROUPS - 1)
}
